"""Answers that must be JSON of a given shape."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from typing import Any

from ponder.errors import InputError, MissingExtra
from ponder.protocols import Verifier
from ponder.types import Question, Sample, Score

_FENCE = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n?\s*```\s*", re.DOTALL | re.IGNORECASE)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def json_schema(schema: Mapping[str, Any]) -> Verifier:
    """1 where the answer is JSON, in a ```json fence or without, that `schema` (json-schema.org) allows, else 0."""
    try:
        library = importlib.import_module("jsonschema")
    except ImportError as fault:
        raise MissingExtra("json_schema() needs the package jsonschema", "Run: pip install jsonschema") from fault
    checker: Any = library.validators.validator_for(schema, default=library.Draft202012Validator)
    try:
        checker.check_schema(schema)
    except library.SchemaError as fault:
        raise InputError(f"this is no JSON schema: {fault.message} at {fault.json_path}", "Mend the schema") from fault
    validator = checker(schema)

    async def verify(question: Question, sample: Sample) -> Score:
        fenced = _FENCE.fullmatch(sample.answer)
        try:
            value = json.loads(fenced[1] if fenced else sample.answer, parse_constant=_refuse)
        except (ValueError, RecursionError) as fault:
            return Score(0.0, "json_schema", f"not JSON: {fault}")
        faults = sorted(validator.iter_errors(value), key=lambda fault: [str(key) for key in fault.absolute_path])
        why = f"{faults[0].json_path}: {faults[0].message}"[:300] if faults else ""
        return Score(float(not faults), "json_schema", why)

    return verify
