"""What is known about a request that has ended."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ponder.ops.finished import Attempt, Finished


def test_it_is_a_value() -> None:
    finished = Finished("r1", model="toy", output_tokens=7)
    assert finished == Finished("r1", model="toy", output_tokens=7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        finished.model = "another"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "succeeded"),
    [
        ({}, True),
        ({"status": 201}, True),
        ({"status": 429, "error": "rate_limit_error"}, False),
        ({"status": 200, "error": "api_error"}, False),  # it failed in the middle of a stream
        ({"disconnected": True}, False),
    ],
)
def test_only_a_whole_answer_is_a_success(change: dict[str, object], succeeded: bool) -> None:
    assert dataclasses.replace(Finished("r1"), **change).succeeded is succeeded  # type: ignore[arg-type]


def test_fields_leave_out_what_is_not_known_and_keep_what_is_nought() -> None:
    fields = Finished("r1", model="toy", micro_dollars=0, queued=0.0, attempts=(Attempt(0, model="toy"),)).fields()
    assert fields["micro_dollars"] == 0
    assert fields["queued"] == 0.0
    assert fields["refused"] is False
    assert fields["attempts"][0]["model"] == "toy"
    assert not {"score", "first_token", "key_id", "finish_reasons", "error"} & fields.keys()
    assert "error" not in fields["attempts"][0]
    assert json.loads(json.dumps(fields))["id"] == "r1"
