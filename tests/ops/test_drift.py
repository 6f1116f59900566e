"""Alarms of drift: how often they are false, how soon they come, and that a restart forgets nothing."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import InputError, StoreError
from ponder.ops.drift import BETS, Detector, Drift, DriftSettings, Stream, place, place_error, share_bound
from ponder.ops.finished import Finished

QUICK = DriftSettings(window=200, recent=50, requests_between_false_alarms=5_000)


def request(rng: random.Random, longer: float = 1, refused: float = 0.02, score: float = 0.7, **more: Any) -> Finished:
    """A request as they come: lengths and costs with a long tail, scores of 0 or 1, some refused."""
    tokens = int(200 * longer * rng.lognormvariate(0, 0.7))
    return Finished(
        "r",
        model="toy",
        output_tokens=tokens,
        refused=rng.random() < refused,
        score=float(rng.random() < score),
        **{"micro_dollars": 40 + 3 * tokens, **more},
    )


def told(drift: Drift) -> set[tuple[str, str]]:
    return {(alarm.signal, alarm.direction) for alarm in drift.alarms()}


# ---------------------------------------------------------------- false alarms


def until_alarm(rng: random.Random, mean: float, threshold: float, most: int) -> int | None:
    detector = Detector(mean)
    for t in range(1, most + 1):
        if detector.add(float(rng.random() < mean)) >= threshold:
            return t
    return None


@pytest.mark.parametrize("mean", [0.02, 0.3, 0.55])
def test_a_detector_keeps_its_promise_at_the_very_edge_of_what_it_bets_against(mean: float) -> None:
    """Coins of exactly the mean that is still no drift: E[T] >= c, and P(T <= t) <= t / c."""
    rng, threshold, runs = random.Random(1), 200.0, 400
    times = [until_alarm(rng, mean, threshold, 20_000) or 20_000 for _ in range(runs)]
    error = statistics.stdev(times) / math.sqrt(runs)
    assert statistics.mean(times) > threshold - 3 * error
    assert statistics.mean(times) < 20 * threshold  # it is a test, and not one that never rejects
    for t in (20, 50, 100):
        share = sum(time <= t for time in times) / runs
        assert share <= t / threshold + 3 * math.sqrt(t / threshold / runs)


@given(st.floats(0.01, 0.99), st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_evidence_is_a_number_above_nought_and_grows_with_what_is_added(mean: float, xs: list[float]) -> None:
    low, high = Detector(mean), Detector(mean)
    for x in xs:
        evidence = low.add(x)
        assert 0 < evidence < math.inf
        assert high.add(min(1.0, x + 0.1)) >= evidence


def test_the_sums_are_those_of_their_definition() -> None:
    """R_t is the sum, over all s up to t, of the product of the bets from s to t."""
    rng = random.Random(2)
    xs = [rng.random() for _ in range(30)]
    detector = Detector(0.4)
    evidence = 0.0
    for x in xs:
        evidence = detector.add(x)
    for bet, found in zip(BETS, detector.sums, strict=True):
        gains = [1 + bet * (x - 0.4) / 0.4 for x in xs]
        assert found == pytest.approx(sum(math.prod(gains[start:]) for start in range(len(xs))))
    assert evidence == pytest.approx(statistics.mean(detector.sums))


def test_evidence_stays_a_number_for_ever() -> None:
    detector = Detector(0.01)
    assert all(math.isfinite(detector.add(1.0)) for _ in range(2_000))


def test_without_a_drift_alarms_are_rarer_than_promised() -> None:
    """25 models, 1,500 requests each behind the reference: at most 1,500 / 5,000 of them may have raised an alarm."""
    rng, false, models = random.Random(3), 0, 25
    for _ in range(models):
        drift = Drift(QUICK)
        for _ in range(1_500 + QUICK.window):
            drift.add(request(rng))
        false += bool(drift.alarms())
    assert false / models <= 1_500 / QUICK.requests_between_false_alarms
    assert false <= 2  # what was measured: allowance for the reference's error makes them rarer still


def test_the_reference_is_as_far_off_as_is_allowed_for_and_hardly_ever_farther() -> None:
    rng, n, doubt, runs = random.Random(4), 100, 0.05, 2_000
    off = [statistics.mean(1 - rng.random() for _ in range(n)) - 0.5 for _ in range(runs)]
    worse = sum(each > place_error(n, doubt) for each in off) / runs
    assert worse <= doubt
    assert max(off) > place_error(n, 0.5)  # the bound is of the right size
    low = [share_bound(sum(rng.random() < 0.1 for _ in range(n)) / n, n, doubt) < 0.1 for _ in range(runs)]
    assert sum(low) / runs <= doubt
    assert share_bound(0.0, 500, 0.001) == pytest.approx(1 - 0.001 ** (1 / 500))
    assert share_bound(1.0, 500, 0.001) == 1.0


# ---------------------------------------------------------------- drift

CHANGES: dict[tuple[str, str], dict[str, Any]] = {
    ("length", "up"): {"longer": 2, "micro_dollars": None},
    ("length", "down"): {"longer": 0.5, "micro_dollars": None},
    ("refusals", "up"): {"refused": 0.3},
    ("score", "down"): {"score": 0.3},
    ("cost", "up"): {"micro_dollars": 1_500},
    ("cost", "down"): {"micro_dollars": 100},
}


@pytest.mark.parametrize("change", CHANGES, ids="-".join)
def test_a_drift_raises_its_alarm_and_no_other_and_soon(change: tuple[str, str]) -> None:
    delays = []
    for seed in range(10):
        rng, drift = random.Random(seed), Drift(QUICK)
        for _ in range(QUICK.window + 300):
            drift.add(request(rng, **({"micro_dollars": None} if change[0] == "length" else {})))
        assert not drift.alarms()
        delay = 0
        while not drift.alarms():
            drift.add(request(rng, **CHANGES[change]))
            delay += 1
            assert delay < 1_000
        assert told(drift) == {change}
        delays.append(delay)
    assert statistics.median(delays) < 200
    assert min(delays) > 3


def test_larger_drifts_are_seen_sooner() -> None:
    delays = []
    for longer in (1.5, 2, 4):
        rng, drift, delay = random.Random(5), Drift(QUICK), 0
        for _ in range(QUICK.window):
            drift.add(request(rng))
        while not drift.alarms():
            drift.add(request(rng, longer=longer))
            delay += 1
        delays.append(delay)
    assert all(first > then for first, then in pairwise(delays))


def test_with_the_usual_settings_twice_the_length_is_seen_after_about_a_hundred_requests() -> None:
    delays = []
    for seed in range(3):
        rng, drift, delay = random.Random(seed), Drift(), 0
        for _ in range(DriftSettings().window):
            drift.add(request(rng, micro_dollars=None))
        while not drift.alarms():
            drift.add(request(rng, longer=2, micro_dollars=None))
            delay += 1
        delays.append(delay)
    assert 50 < statistics.median(delays) < 150


def test_what_is_tolerated_raises_nothing() -> None:
    rng = random.Random(6)
    drift, strict = Drift(replace(QUICK, tolerated_place=0.2, tolerated_refusals=0.1)), Drift(QUICK)
    for number in range(QUICK.window + 1_500):
        finished = request(rng, longer=1 if number < QUICK.window else 1.4, micro_dollars=None)
        drift.add(finished)
        strict.add(finished)
    assert told(strict) == {("length", "up")}
    assert told(drift) == set()


def test_an_alarm_is_raised_once_says_what_it_was_and_is_and_stands_until_the_restart() -> None:
    drift, raised = Drift(QUICK, clock=lambda: 1_700_000_000.0), []
    made = Finished("r", model="toy", prompt_name="support", prompt_version=3, output_tokens=100, micro_dollars=0)
    for number in range(QUICK.window + 300):
        raised += drift.add(replace(made, output_tokens=(100 if number < QUICK.window else 1_250) + number % 7))
    assert [alarm.stream for alarm in raised] == [Stream("toy", "support", 3)]
    (alarm,) = drift.alarms()
    assert alarm == raised[0]
    shown = "toy, prompt support v3: answers have become longer: median 1,253 tokens in the last "
    assert alarm.text.startswith(shown)
    assert alarm.text.endswith("requests, median 103 tokens in the 200 of the reference")
    assert "\n" not in alarm.text
    told = (alarm.expected, alarm.seen, alarm.since)
    assert told == ("median 103 tokens", "median 1,253 tokens", 1_700_000_000)
    assert drift.state()["toy", "support v3", "length"] is True
    assert drift.state()["toy", "support v3", "cost"] is False
    drift.restart("another")
    drift.restart("toy", "support v4")
    assert drift.alarms()
    drift.restart("toy")
    assert not drift.alarms()
    for number in range(QUICK.window + 300):
        drift.add(replace(made, output_tokens=1_250 + number % 7))
    assert not drift.alarms()  # what is now is the reference


def test_models_and_versions_of_prompts_have_references_of_their_own() -> None:
    drift = Drift(QUICK)
    for number in range(4 * (QUICK.window + 300)):
        model, version = ("a", "b")[number % 2], number // 2 % 2
        long = 1_000 * (version + 1) * (5 if model == "b" else 1)
        drift.add(Finished("r", model=model, prompt_name="p", prompt_version=version, output_tokens=long + number % 5))
    assert not drift.alarms()
    assert len(drift.state()) == 4 * 2  # lengths and refusals; no price and no score were known


@pytest.mark.parametrize("change", [{"status": 500}, {"error": "api_error"}, {"disconnected": True}])
def test_what_was_no_whole_answer_tells_nothing(change: dict[str, Any]) -> None:
    drift = Drift(QUICK)
    for number in range(QUICK.window + 300):
        made = Finished("r", model="toy", output_tokens=100 + number % 5)
        drift.add(made if number < QUICK.window else replace(made, output_tokens=1, refused=True, **change))
    assert not drift.alarms()


def test_only_the_streams_last_used_are_kept() -> None:
    drift = Drift(replace(QUICK, streams=3, window=20))
    for model in [*"abc", "a", "d"]:
        for _ in range(20):
            drift.add(Finished("r", model=model, output_tokens=3))
    assert {model for model, _, _ in drift.state()} == {"a", "c", "d"}


@given(st.lists(st.integers(0, 5), min_size=1), st.integers(-1, 6))
def test_a_place_is_the_share_below_with_ties_counted_half(values: list[int], value: int) -> None:
    expected = sum((each < value) + 0.5 * (each == value) for each in values) / len(values)
    assert place(sorted(values), value) == pytest.approx(expected)


@given(st.floats() | st.integers(-5, 2**70), st.none() | st.integers(-5, 2**70), st.none() | st.floats(), st.booleans())
def test_nothing_that_an_upstream_reports_is_a_failure(tokens: Any, cost: Any, score: Any, refused: bool) -> None:
    drift = Drift(replace(QUICK, window=20))
    made = Finished("r", output_tokens=tokens, micro_dollars=cost, score=score, refused=refused)
    for _ in range(30):
        drift.add(made)
    assert not drift.alarms()
    json.dumps(drift.dump(), allow_nan=False)


# ---------------------------------------------------------------- restarts


@pytest.mark.parametrize("at", [50, QUICK.window + 20, QUICK.window + 320])
def test_a_restart_forgets_nothing(at: int, tmp_path: Path) -> None:
    """Saved and loaded anywhere, it says the same afterwards as one that went on."""
    rng = random.Random(7)
    clock = lambda: 1_700_000_000.0  # noqa: E731
    whole, parted = Drift(QUICK, clock), Drift(QUICK, clock)
    requests = [request(rng) for _ in range(QUICK.window + 300)] + [request(rng, longer=2) for _ in range(300)]
    raised: tuple[list[Any], list[Any]] = ([], [])
    for number, finished in enumerate(requests):
        if number == at:
            parted.save(tmp_path / "a" / "drift.json")
            parted = Drift.load(tmp_path / "a" / "drift.json", QUICK, clock)
        raised[0].extend(whole.add(finished))
        raised[1].extend(parted.add(finished))
    assert raised[0] == raised[1]
    assert raised[0]
    assert parted.dump() == whole.dump()
    assert parted.alarms() == whole.alarms()
    assert {alarm.since for alarm in parted.alarms()} == {1_700_000_000}
    assert [each.name for each in (tmp_path / "a").iterdir()] == ["drift.json"]


def test_alarms_that_were_kept_as_their_text_still_stand(tmp_path: Path) -> None:
    rng, drift = random.Random(7), Drift(QUICK)
    for number in range(QUICK.window + 300):
        drift.add(request(rng, longer=1 if number < QUICK.window else 3))
    document = drift.dump()
    for each in document["streams"][0]["watches"].values():
        each["raised"] = {direction: alarm["text"] for direction, alarm in each["raised"].items()}
    (tmp_path / "d").write_text(json.dumps(document))
    kept = Drift.load(tmp_path / "d", QUICK).alarms()
    assert [alarm.text for alarm in kept] == [alarm.text for alarm in drift.alarms()]
    assert kept


def test_the_file_is_small(tmp_path: Path) -> None:
    rng, drift = random.Random(8), Drift()
    for _ in range(2_000):
        drift.add(request(rng))
    drift.save(tmp_path / "drift.json")
    assert (tmp_path / "drift.json").stat().st_size < 20_000


def test_evidence_under_other_settings_is_not_taken_over(tmp_path: Path) -> None:
    rng, drift = random.Random(9), Drift(QUICK)
    for number in range(QUICK.window + 30):
        drift.add(request(rng, longer=1 if number < QUICK.window else 3))
    drift.save(tmp_path / "d")
    other = Drift.load(tmp_path / "d", replace(QUICK, tolerated_place=0.1)).dump()["streams"][0]["watches"]["length"]
    assert other["reference"] == drift.dump()["streams"][0]["watches"]["length"]["reference"]
    assert other["detectors"]["up"][1:] == [0.0] * len(BETS)
    assert Drift.load(tmp_path / "d", replace(QUICK, window=300)).dump()["streams"] == []


def test_no_file_is_a_beginning_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert Drift.load(tmp_path / "none").dump()["streams"] == []
    for text in ("", "[]", '{"version": 2}', '{"version": 1, "window": 500, "streams": [{"stream": ["a", "", null]}]}'):
        (tmp_path / "d").write_text(text)
        with pytest.raises(StoreError, match="is no state of the alarms of drift"):
            Drift.load(tmp_path / "d")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_keeps_the_state_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drift = Drift(QUICK)
    drift.add(Finished("r", model="toy"))
    drift.save(tmp_path / "d")
    before = (tmp_path / "d").read_text()
    write = Path.write_text
    full: Callable[..., int] = lambda path, text, **more: write(Path("/dev/full"), text, **more)  # noqa: E731
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError, match="No space left"):
        drift.save(tmp_path / "d")
    assert (tmp_path / "d").read_text() == before


@pytest.mark.parametrize(
    "wrong", [{"window": 5}, {"doubt": 0}, {"tolerated_place": 0.5}, {"requests_between_false_alarms": math.nan}]
)
def test_bad_settings_are_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        DriftSettings(**wrong)
