"""Metrics: what they count, that their text can be read, and that nobody can make them grow without bound."""

from __future__ import annotations

import math
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from ponder.ops.finished import Finished
from ponder.ops.metrics import MOST_LABELS, Metrics, Upstream

DONE = Finished(
    "r1",
    dialect="openai",
    model="toy",
    answered="toy-1",
    backend="gguf",
    key_id="k1",
    project="p1",
    input_tokens=100,
    cached_tokens=40,
    output_tokens=60,
    reasoning_tokens=25,
    finish_reasons=("stop",),
    seconds=1.5,
    first_token=0.3,
    between_tokens=0.02,
    queued=0.01,
    micro_dollars=1_250_000,
)


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples of the text, by name and labels, as a scraper reads them."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, tuple(sorted(labels.items()))))


def test_a_request_is_counted_everywhere() -> None:
    metrics = Metrics(["toy"])
    metrics.finished(DONE)
    metrics.finished(DONE)
    expected = {
        ("ponder:request_success_total", "finished_reason=stop"): 2,
        ("ponder:prompt_tokens_total", ""): 200,
        ("ponder:prompt_tokens_cached_total", ""): 80,
        ("ponder:generation_tokens_total", ""): 120,
        ("ponder:reasoning_tokens_total", ""): 50,
        ("ponder:dollars_total", "backend=gguf"): 2.5,
        ("ponder:e2e_request_latency_seconds_sum", ""): 3.0,
        ("ponder:time_to_first_token_seconds_sum", ""): 0.6,
        ("ponder:time_to_first_token_seconds_count", ""): 2,
        ("ponder:inter_token_latency_seconds_sum", ""): 0.04,
        ("ponder:request_queue_time_seconds_sum", ""): 0.02,
    }
    for (name, more), number in expected.items():
        labels = dict(pair.split("=") for pair in more.split() if pair)
        assert value(metrics, name, model_name="toy", **labels) == pytest.approx(number), name
    assert value(metrics, "ponder:requests_total", operation="chat", dialect="openai", status="200") == 2
    assert value(metrics, "ponder:time_to_first_token_seconds_bucket", model_name="toy", le="0.25") == 0
    assert value(metrics, "ponder:time_to_first_token_seconds_bucket", model_name="toy", le="0.5") == 2


def test_names_of_vllm_come_with_its_own_prefix_too() -> None:
    metrics = Metrics(["toy"], prefix="vllm:")
    metrics.finished(DONE)
    names = {name for name, _ in samples(metrics)}
    assert {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_bucket",
        "vllm:e2e_request_latency_seconds_bucket",
        "vllm:request_success_total",
    } <= names


def test_what_runs_and_waits_is_asked_for_at_each_scrape() -> None:
    metrics = Metrics()
    assert value(metrics, "ponder:num_requests_running") == value(metrics, "ponder:num_requests_waiting") == 0
    now = [3, 5]
    metrics.queue(lambda: now[0], lambda: now[1])
    assert value(metrics, "ponder:num_requests_running") == 3
    assert value(metrics, "ponder:num_requests_waiting") == 5
    now[:] = [0, 1]
    assert value(metrics, "ponder:num_requests_running") == 0
    assert value(metrics, "ponder:num_requests_waiting") == 1


def test_failures_are_no_successes() -> None:
    metrics = Metrics(["toy"])
    metrics.finished(Finished("r", model="toy", dialect="anthropic", status=429, error="rate_limit_error"))
    metrics.finished(Finished("r", model="toy", dialect="anthropic", status=200, disconnected=True, output_tokens=3))
    assert value(metrics, "ponder:requests_total", operation="chat", dialect="anthropic", status="429") == 1
    assert value(metrics, "ponder:requests_total", operation="chat", dialect="anthropic", status="499") == 1
    assert value(metrics, "ponder:client_disconnects_total", model_name="toy") == 1
    assert value(metrics, "ponder:generation_tokens_total", model_name="toy") == 3  # they were paid for
    assert not [name for name, _ in samples(metrics) if name == "ponder:request_success_total"]


@pytest.mark.parametrize(
    ("reasons", "label"),
    [
        (("length",), "length"),
        (("stop", "stop"), "stop"),
        (("stop", "length"), "mixed"),
        ((), "unknown"),
        (("of an upstream's own",), "other"),
    ],
)
def test_a_request_is_one_success_whatever_its_choices(reasons: tuple[str, ...], label: str) -> None:
    metrics = Metrics(["toy"])
    metrics.finished(Finished("r", model="toy", finish_reasons=reasons))
    counted = {labels: n for (name, labels), n in samples(metrics).items() if name == "ponder:request_success_total"}
    assert counted == {(("finished_reason", label), ("model_name", "toy")): 1}


def test_no_price_is_not_a_price_of_nothing() -> None:
    metrics = Metrics(["toy"])
    metrics.finished(Finished("r", model="toy", backend="b", output_tokens=3, micro_dollars=None))
    metrics.finished(Finished("r", model="toy", backend="free", output_tokens=3, micro_dollars=0))
    assert value(metrics, "ponder:unpriced_requests_total", model_name="toy", backend="b") == 1
    assert value(metrics, "ponder:dollars_total", model_name="toy", backend="b") is None
    assert value(metrics, "ponder:dollars_total", model_name="toy", backend="free") == 0
    assert value(metrics, "ponder:unpriced_requests_total", model_name="toy", backend="free") is None


def test_a_model_that_a_client_made_up_is_never_a_label() -> None:
    metrics = Metrics(["toy"])
    for number in range(1000):
        metrics.finished(Finished("r", model=f"made-up-{number}", status=404, error="not_found_error"))
    text = metrics.exposition().decode()
    assert "made-up" not in text
    assert value(metrics, "ponder:e2e_request_latency_seconds_count", model_name="unknown") == 1000
    metrics.know(["made-up-1"])
    metrics.finished(Finished("r", model="made-up-1"))
    assert value(metrics, "ponder:e2e_request_latency_seconds_count", model_name="made-up-1") == 1


def test_the_model_that_answered_stands_for_an_alias_that_is_not_known() -> None:
    metrics = Metrics(["toy-1"])
    metrics.finished(Finished("r", model="toy:vote-8", answered="toy-1"))
    assert value(metrics, "ponder:e2e_request_latency_seconds_count", model_name="toy-1") == 1


def test_labels_are_bounded() -> None:
    metrics = Metrics([f"m{number}" for number in range(5 * MOST_LABELS)], keys=True)
    for number in range(5 * MOST_LABELS):
        name = f"m{number}"
        metrics.finished(
            Finished("r", model=name, backend=name, dialect=name, key_id=name, project=name, status=number)
        )
        metrics.limit_hit(name)
    metrics.upstreams(lambda: {f"m{number}": "open" for number in range(5 * MOST_LABELS)})
    values: dict[str, set[str]] = {}
    for _, labels in samples(metrics):
        for label, each in labels:
            values.setdefault(label, set()).add(each)
    assert {"model_name", "backend", "dialect", "key", "project", "limit", "status"} <= values.keys()
    assert all(len(each) <= MOST_LABELS + 2 for label, each in values.items() if label != "le")
    assert "other" in values["model_name"]


def test_ids_of_keys_only_when_switched_on() -> None:
    off, on = Metrics(["toy"]), Metrics(["toy"], keys=True)
    for metrics in (off, on):
        metrics.finished(DONE)
    assert "k1" not in off.exposition().decode()
    assert value(on, "ponder:key_dollars_total", key="k1", project="p1") == 1.25
    assert value(on, "ponder:key_tokens_total", key="k1", project="p1") == 160


def test_upstreams_limits_ledger_and_what_others_count() -> None:
    metrics = Metrics()
    states: dict[str, Upstream] = {"cloud": "open"}
    metrics.upstreams(lambda: states)
    assert value(metrics, "ponder:upstream_state", backend="cloud", state="open") == 1
    states["cloud"] = "half_open"
    assert value(metrics, "ponder:upstream_state", backend="cloud", state="open") == 0
    assert value(metrics, "ponder:upstream_state", backend="cloud", state="half_open") == 1
    metrics.limit_hit("usd/month")
    assert value(metrics, "ponder:limits_hit_total", limit="usd/month") == 1
    with pytest.raises(RuntimeError), metrics.ledger("reserve"):
        raise RuntimeError
    assert value(metrics, "ponder:ledger_seconds_count", operation="reserve") == 1
    dropped = [0]
    metrics.watch("spans_dropped", "Spans that were never exported.", lambda: dropped[0])
    dropped[0] = 7
    assert value(metrics, "ponder:spans_dropped_total") == 7


def test_alarms_of_drift_appear_and_go() -> None:
    metrics = Metrics(["toy"])
    metrics.drift({("toy", "support v2", "length"): True, ("toy", "", "cost"): False})
    assert value(metrics, "ponder:drift_alarm", model_name="toy", prompt="support v2", signal="length") == 1
    assert value(metrics, "ponder:drift_alarm", model_name="toy", prompt="", signal="cost") == 0
    metrics.drift({})
    assert not [name for name, _ in samples(metrics) if name == "ponder:drift_alarm"]


anything = st.floats() | st.integers(-10, 2**70) | st.just(2**2000)


huge = st.integers(-5, 2**70) | st.just(2**2000)


@given(
    st.builds(
        Finished,
        st.text(),
        model=st.sampled_from(["toy", "x"]),
        operation=st.text(max_size=5),
        dialect=st.text(max_size=5),
        backend=st.text(max_size=5),
        status=st.integers(-1, 1000),
        finish_reasons=st.lists(st.text(max_size=5)).map(tuple),
        seconds=anything,
        queued=anything,
        first_token=st.none() | anything,
        between_tokens=st.none() | anything,
        micro_dollars=st.none() | huge,
        input_tokens=huge,
        output_tokens=huge,
    )
)
def test_whatever_an_upstream_reports_the_text_can_be_read(finished: Any) -> None:
    metrics = Metrics(["toy"])
    metrics.finished(finished)
    read = samples(metrics)
    assert all(math.isfinite(number) and number >= 0 for (name, _), number in read.items() if "_created" not in name)
    model = "toy" if finished.model == "toy" else "unknown"
    assert value(metrics, "ponder:e2e_request_latency_seconds_count", model_name=model) == 1


def test_threads_count_together() -> None:
    metrics = Metrics(["toy"])
    threads = [threading.Thread(target=lambda: [metrics.finished(DONE) for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics, "ponder:generation_tokens_total", model_name="toy") == 8 * 200 * 60


def test_the_page_names_every_metric_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[\w`, ]+`) \| (?:gauge|counter|hist)", page, re.M))))
    metrics = Metrics(["toy"], keys=True)
    text = metrics.exposition().decode()
    assert named == {name.removeprefix("ponder:") for name in re.findall(r"^# TYPE (\S+) ", text, re.M)}
