"""The JSON Schema of a trace event, docs/reference/trace.schema.json, held against events that were really written."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "trace.schema.json"


@functools.cache
def _validator() -> Callable[[Any], Iterable[Any]] | None:
    """Return what yields the faults of an event; None without jsonschema, which the version matrix doesn't install."""
    try:
        import jsonschema
    except ImportError:
        return None
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema).iter_errors


def faults(event: Any) -> list[str]:
    """Return in what way ``event``, read from a trace, differs from the schema."""
    validate = _validator()
    return [] if validate is None else [f"{fault.json_path}: {fault.message}" for fault in validate(event)]


def check(events: Iterable[Any]) -> None:
    """Fail if one of ``events`` differs from the schema."""
    for event in events:
        assert not (found := faults(event)), (found, event)
