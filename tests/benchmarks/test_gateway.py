"""The benchmark of the gateway runs, and its generator of load counts what the upstream counts."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def mock() -> Iterator[str]:
    """Where the mock upstream listens."""
    command = [sys.executable, str(HERE / "mock_upstream.py"), "--first", "0.01", "--between", "0.005"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.kill()
    process.communicate()


def loaded(url: str, **asked: Any) -> dict[str, Any]:
    body = {
        "model": "mock",
        "messages": [{"role": "user", "content": asked.pop("text", "#a")}],
        **asked.pop("body", {}),
    }
    line = json.dumps({"url": f"{url}/v1/chat/completions", "body": body, "seconds": 0.5, **asked})
    command = [sys.executable, str(HERE / "load.py")]
    done = subprocess.run(command, input=line, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def counted(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/counts", timeout=10) as reply:
        found: dict[str, Any] = json.load(reply)
        return found


@pytest.mark.parametrize("how", [{"rate": 100}, {"streams": 4}])
@pytest.mark.parametrize("stream", [True, False])
def test_the_generator_counts_what_the_upstream_does(mock: str, how: dict[str, int], stream: bool) -> None:
    found = loaded(mock, body={"stream": stream}, **how)
    assert found["errors"] == {}
    count = found["answers"]
    assert counted(mock)["a"] == {"asked": count, "sent": 8 * count, "whole": count, "left": 0}
    assert found["answers"] > 5
    assert found["latency"]["p50"] >= 10 + 7 * 5 - 2  # milliseconds; timers may be early by one
    assert found["first"]["p50"] <= found["latency"]["p50"]
    if stream:
        assert found["latency"]["p50"] - found["first"]["p50"] > 7 * 5 / 2


def test_what_is_not_whole_is_an_error(mock: str) -> None:
    found = loaded(mock, text="fault:drop", body={"stream": True}, streams=2)
    assert (found["answers"], set(found["errors"])) == (0, {"broken"})
    assert set(loaded(mock, text="fault:broken", streams=2)["errors"]) == {"500"}


@pytest.mark.slow
def test_the_benchmark_runs() -> None:
    command = [sys.executable, str(HERE / "gateway.py"), "--quick", "--shapes", "whole_50", "stream_64"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["benchmark"] == "gateway"
    for shape in ("whole_50", "stream_64"):
        ours = found["shapes"][shape]["ponder"]
        assert (ours["errors"], ours["per_second"] > 0) == (0, True)
        assert ours["processor_ms"] > 0
    assert found["shapes"]["whole_50"]["ponder"]["added_latency_p50"] > 0
    assert found["peak_MiB"]["ponder"] > 10
