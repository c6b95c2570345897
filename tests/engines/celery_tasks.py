"""The Celery app of the tests. Its workers import this module by name."""

from __future__ import annotations

import os

from celery import Celery
from celery.signals import worker_init

from routeweiler_sync import Routeweiler

from . import jobs

#: Names the environment variable with the URL of Redis.
BROKER = "ENGINES_BROKER"

app = Celery("engines", broker=os.environ.get(BROKER), backend=os.environ.get(BROKER))
app.conf.update(
    task_serializer="pickle",
    result_serializer="pickle",  # JSON keeps an exception's first argument only
    accept_content=["pickle", "json"],
    task_acks_late=True,
    task_reject_on_worker_lost=True,  # what a killed worker was doing is done again
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)


@worker_init.connect
def use_before_forking(**_: object) -> None:
    """Let the workers inherit a session that has bought: with connections to node, database and server."""
    jobs.own_session().get(os.environ[jobs.FIRST]).raise_for_status()


@app.task
def fetch(session: Routeweiler, url: str) -> jobs.Page:
    return jobs.fetch(session, url)


@app.task
def fetch_here(url: str) -> jobs.Page:
    return jobs.fetch_here(url)
