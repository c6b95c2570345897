"""Build glue. All metadata is in setup.cfg; this file adds the command ``python setup.py build_protos``."""

from setuptools import setup

setup()
