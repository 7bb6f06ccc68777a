"""The published schemas of JSON answers, and a check of an answer that also finds keys which no schema describes."""

from __future__ import annotations

import json
from typing import Any

import jsonschema

from tests.shown import REPOSITORY

FOLDER = REPOSITORY / "docs" / "reference" / "schemas"


def load(name: str) -> dict[str, Any]:
    """Return the schema of an answer, such as ``status``, in the version that this pvefw has."""
    schema: dict[str, Any] = json.loads((FOLDER / f"{name}-1.json").read_text("utf-8"))
    return schema


def check(name: str, answer: str | object) -> None:
    """Raise :class:`jsonschema.ValidationError` if an answer, as text or data, does not have its published form.

    The schemas allow more keys, which later versions may add; here none may be undescribed.
    """
    data = json.loads(answer) if isinstance(answer, str) else answer
    schema = _closed(load(name))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(data)


def _closed(schema: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **closed} if "properties" in schema and "type" in schema else closed
