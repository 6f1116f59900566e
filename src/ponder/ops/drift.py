"""Alarms when answers become longer or shorter, dearer or cheaper, are refused or scored in another way than before.

For each model and version of a prompt, the first `window` requests are the reference; every later one is compared with
it. Lengths, costs and verifier scores are compared by their place among the reference's, x = F(value), ties counted
half, which needs no assumption about how they are distributed; refusals by x = 0 or 1. Had nothing changed, the mean of
x would be at most m: the reference's mean (1/2 for places), a bound on how far the reference itself may be off, and
what one tolerates. Against that bets an e-detector of the Shiryaev-Roberts kind, for every direction:

    R_t = (R_{t-1} + 1) (1 + b (x_t - m) / m),    the mean of it over bets b = 1/2, 1/4, ..., 1/64;    alarm at R_t >= c

While E[x_t | past] <= m, R_t - t is a supermartingale that starts at 0, so an alarm at time T has E[T] >= c, and
P(T <= t) <= t / c, whatever the distribution of x, and without independence beyond that: c is the least mean number of
requests until a false alarm. The detectors of one model share it: c = `requests_between_false_alarms` times the number
of detectors. The less a change is, the longer it takes to be seen: about ln(c) over the growth that the best bet has.

Shin, Ramdas, Rinaldo: E-detectors: a nonparametric framework for sequential change detection (2022), sections 2 and 4;
the bound of the reference is Bernstein's for places, of variance 1/12, and Chernoff's for refusals (Hoeffding 1963,
theorem 1).

The guarantee is about what is bet against: another mix of questions is a drift, too, and is told.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import threading
import time
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ponder.errors import InputError, StoreError
from ponder.ops.finished import Finished

Signal = Literal["length", "refusals", "score", "cost"]
Direction = Literal["up", "down"]
SIGNALS: tuple[Signal, ...] = ("length", "refusals", "score", "cost")
DIRECTIONS: tuple[Direction, ...] = ("up", "down")

BETS = tuple(2.0**-k for k in range(1, 7))
VERSION = 1
_MOST = 1e300
"""Evidence is capped here: it has raised its alarm long before, and must stay a number."""


@dataclass(frozen=True)
class DriftSettings:
    """window: requests of the reference. recent: those that an alarm describes. requests_between_false_alarms: the
    least mean number of them, for one model and version of a prompt. doubt: the most probability that the reference's
    own error is larger than what is allowed for it. tolerated_place: how far the mean place may move without an alarm,
    beyond that error (0.05: a value of now is above one of the reference in 55 instead of 50 of 100 pairs).
    tolerated_refusals: the same for the share of refusals. streams: pairs of model and prompt that are kept, those
    longest unused go first.
    """

    window: int = 500
    recent: int = 100
    requests_between_false_alarms: float = 100_000
    doubt: float = 0.001
    tolerated_place: float = 0.0
    tolerated_refusals: float = 0.01
    streams: int = 50

    def __post_init__(self) -> None:
        for name, least in (("window", 20), ("recent", 1), ("requests_between_false_alarms", 1), ("streams", 1)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} of the alarms of drift must be at least {least}", "raise it")
        if not 0 < self.doubt < 1:
            raise InputError("doubt of the alarms of drift must be between 0 and 1", "take 0.001")
        if not (0 <= self.tolerated_place < 0.5 and 0 <= self.tolerated_refusals < 1):
            raise InputError("what the alarms of drift tolerate must be a share from 0 on", "take 0")


class Stream(NamedTuple):
    """What is watched: a model, and the version of a prompt where there is one."""

    model: str
    prompt: str = ""
    version: int | None = None

    @property
    def named(self) -> str:
        """The prompt with its version, "" for none."""
        return self.prompt if self.version is None else f"{self.prompt} v{self.version}"


@dataclass(frozen=True)
class Alarm:
    """Something has drifted. text: one line that says what it was and what it is. expected: in the reference. seen: in
    the last requests, when it was raised, at `since`, in seconds since 1970."""

    stream: Stream
    signal: Signal
    direction: Direction
    text: str
    expected: str = ""
    seen: str = ""
    since: float = field(default=0.0, compare=False)


class Detector:
    """Evidence that the mean of numbers from 0 to 1 is above `mean`: `add` gives it, one number after another.

    While it is not, evidence reaches c within t numbers with a probability of at most t / c.
    """

    def __init__(self, mean: float) -> None:
        self.mean = mean
        self.sums = [0.0] * len(BETS)

    def add(self, x: float) -> float:
        """The evidence with x taken in."""
        gain = x / self.mean - 1
        self.sums = [min((old + 1) * (1 + bet * gain), _MOST) for old, bet in zip(self.sums, BETS, strict=True)]
        return sum(self.sums) / len(BETS)


def place_error(n: int, doubt: float) -> float:
    """How far the mean place of new values may be off 1/2 only because the n of the reference are not all there are.

    Bernstein: P(error >= e) <= exp(-n e^2 / (2 (1/12 + e/6))), solved for e.
    """
    nats = math.log(1 / doubt)
    return (nats / 3 + math.sqrt(nats * nats / 9 + 2 * n * nats / 3)) / (2 * n)


def share_bound(seen: float, n: int, doubt: float) -> float:
    """The largest share that is still believable where n had `seen`: Chernoff, n KL(seen, share) = ln(1 / doubt)."""
    low, high = seen, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if n * _divergence(seen, middle) < math.log(1 / doubt):
            low = middle
        else:
            high = middle
    return high


def _divergence(p: float, q: float) -> float:
    """Kullback-Leibler divergence of a coin of p from one of q, in nats."""
    gone = 0.0 if p == 0 else p * math.log(p / q)
    return gone if p == 1 else gone + ((1 - p) * math.log((1 - p) / (1 - q)) if q < 1 else math.inf)


@dataclass
class _Watch:
    """One signal of one stream. `reference` is sorted; `raised` holds the alarms that stand, by their directions."""

    reference: list[float] = field(default_factory=list)
    recent: deque[float] = field(default_factory=deque)
    detectors: dict[Direction, Detector] = field(default_factory=dict)
    raised: dict[Direction, Alarm] = field(default_factory=dict)


class Drift:
    """Watches streams of requests. Safe to use from several threads.

    drift.add(finished)        # a few microseconds; alarms that it raised
    drift.alarms()             # those that stand, until `restart` takes what is now as the new reference
    drift.save(path)           # and Drift.load(path) after a restart
    """

    def __init__(self, settings: DriftSettings | None = None, clock: Callable[[], float] = time.time) -> None:
        self.settings, self._clock = settings or DriftSettings(), clock
        self._streams: OrderedDict[Stream, dict[Signal, _Watch]] = OrderedDict()
        self._lock = threading.Lock()
        self._threshold = self.settings.requests_between_false_alarms * len(SIGNALS) * len(DIRECTIONS)

    def add(self, finished: Finished) -> tuple[Alarm, ...]:
        """Takes a request in; gives the alarms that it raised. Those that failed or were left tell nothing here."""
        if not finished.succeeded or not finished.choices:  # vectors and sounds have no length
            return ()
        # As it was asked for: an upstream that answers with another one under the same name is what is to be noticed.
        stream = Stream(finished.model or finished.answered, finished.prompt_name, finished.prompt_version)
        with self._lock:
            watches = self._watches(stream)
            return tuple(
                alarm
                for signal, value in _values(finished).items()
                for alarm in self._take(stream, signal, watches[signal], value)
            )

    def alarms(self) -> tuple[Alarm, ...]:
        """All alarms that stand."""
        with self._lock:
            return tuple(
                alarm
                for watches in self._streams.values()
                for watch in watches.values()
                for alarm in watch.raised.values()
            )

    def state(self) -> dict[tuple[str, str, str], bool]:
        """Whether an alarm stands, by model, prompt and signal: what `Metrics.drift` takes."""
        with self._lock:
            return {
                (stream.model, stream.named, signal): bool(watch.raised)
                for stream, watches in self._streams.items()
                for signal, watch in watches.items()
                if watch.reference
            }

    def restart(self, model: str | None = None, prompt: str | None = None) -> None:
        """Ends the alarms of a model, of all without one, and takes the requests that come next as the reference.

        prompt: of one prompt of it alone, as `Stream.named` has it.
        """
        with self._lock:
            for stream in list(self._streams):
                if model in (None, stream.model) and prompt in (None, stream.named):
                    del self._streams[stream]

    # ------------------------------------------------------------ across restarts

    def dump(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        with self._lock:
            return {
                "version": VERSION,
                "window": self.settings.window,
                "streams": [
                    {"stream": list(stream), "watches": {signal: _watch_to(watch) for signal, watch in watches.items()}}
                    for stream, watches in self._streams.items()
                ],
            }

    def save(self, path: str | Path) -> None:
        """Writes everything to a file, whole or not at all. Raises StoreError if it cannot be written."""
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self.dump(), separators=(",", ":")), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise StoreError(f"{path} cannot be written: {error.strerror}", "free disk space") from None

    @classmethod
    def load(
        cls, path: str | Path, settings: DriftSettings | None = None, clock: Callable[[], float] = time.time
    ) -> Drift:
        """What `save` wrote; new where there is no file, or one of another window, whose evidence means something else.

        Raises StoreError for a file that cannot be read.
        """
        drift = cls(settings, clock)
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            if document["version"] != VERSION:
                raise ValueError(document["version"])
            if document["window"] == drift.settings.window:
                for each in document["streams"]:
                    model, prompt, version = each["stream"]
                    stream, kept = Stream(model, prompt, version), each["watches"]
                    watches = drift._watches(stream)
                    watches.update(
                        {signal: _watch_from(stream, signal, kept[signal], drift.settings) for signal in SIGNALS}
                    )
        except FileNotFoundError:
            return drift
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise StoreError(f"{path} is no state of the alarms of drift", "remove it: they then begin anew") from None
        return drift

    # ------------------------------------------------------------ within

    def _watches(self, stream: Stream) -> dict[Signal, _Watch]:
        if stream not in self._streams:
            recent = self.settings.recent
            self._streams[stream] = {signal: _Watch(recent=deque(maxlen=recent)) for signal in SIGNALS}
            while len(self._streams) > self.settings.streams:
                self._streams.popitem(last=False)
        self._streams.move_to_end(stream)
        return self._streams[stream]

    def _take(self, stream: Stream, signal: Signal, watch: _Watch, value: float) -> list[Alarm]:
        if len(watch.reference) < self.settings.window:
            insort(watch.reference, value)
            if len(watch.reference) == self.settings.window:
                watch.detectors = _detectors(signal, watch.reference, self.settings)
            return []
        watch.recent.append(value)
        x = value if signal == "refusals" else place(watch.reference, value)
        raised = []
        for direction, detector in watch.detectors.items():
            evidence = detector.add(x if direction == "up" else 1 - x)
            if evidence >= self._threshold and direction not in watch.raised:
                watch.raised[direction] = _alarm(stream, signal, direction, watch, self._clock())
                raised.append(watch.raised[direction])
        return raised


def place(reference: Sequence[float], value: float) -> float:
    """The share of the sorted reference that is below the value, and half of what equals it."""
    return (bisect_left(reference, value) + bisect_right(reference, value)) / (2 * len(reference))


def _detectors(signal: Signal, reference: Sequence[float], settings: DriftSettings) -> dict[Direction, Detector]:
    n = len(reference)
    if signal != "refusals":
        mean = 0.5 + place_error(n, settings.doubt) + settings.tolerated_place
        return {direction: Detector(mean) for direction in DIRECTIONS if mean < 1}
    seen = sum(reference) / n
    means: Mapping[Direction, float] = {
        "up": share_bound(seen, n, settings.doubt) + settings.tolerated_refusals,
        "down": share_bound(1 - seen, n, settings.doubt) + settings.tolerated_refusals,
    }
    # Where all are refused already there is no more of it to find.
    return {direction: Detector(mean) for direction, mean in means.items() if mean < 1}


def _values(finished: Finished) -> dict[Signal, float]:
    """The numbers of a request, those that are known. Its length is that of one choice."""
    values: dict[Signal, float | None] = {
        "length": None if finished.refused else finished.output_tokens / max(1, finished.choices),
        "refusals": float(finished.refused),
        "score": finished.score,
        "cost": None if finished.micro_dollars is None else float(finished.micro_dollars),
    }
    return {signal: value for signal, value in values.items() if value is not None and math.isfinite(value)}


_CHANGED: Mapping[tuple[Signal, Direction], str] = {
    ("length", "up"): "answers have become longer",
    ("length", "down"): "answers have become shorter",
    ("refusals", "up"): "more is refused",
    ("refusals", "down"): "less is refused",
    ("score", "up"): "the verifier scores higher",
    ("score", "down"): "the verifier scores lower",
    ("cost", "up"): "requests have become dearer",
    ("cost", "down"): "requests have become cheaper",
}

_MEAN_SHOWN: Mapping[Signal, str] = {"refusals": "{:.1%}", "score": "mean {:.3f}"}
_MEDIAN_SHOWN: Mapping[Signal, str] = {"length": "median {:,.0f} tokens", "cost": "median {:,.0f} micro-dollars"}


def _alarm(stream: Stream, signal: Signal, direction: Direction, watch: _Watch, since: float) -> Alarm:
    of = f"{stream.model}, prompt {stream.named}" if stream.prompt else stream.model
    now, then = _shown(signal, watch.recent), _shown(signal, watch.reference)
    text = (
        f"{of}: {_CHANGED[signal, direction]}: {now} in the last {len(watch.recent)} requests, "
        f"{then} in the {len(watch.reference)} of the reference"
    )
    return Alarm(stream, signal, direction, text, then, now, since)


def _shown(signal: Signal, values: Sequence[float]) -> str:
    if signal in _MEAN_SHOWN:
        return _MEAN_SHOWN[signal].format(sum(values) / len(values))
    return _MEDIAN_SHOWN[signal].format(statistics.median(values))


_OF_ALARM = ("text", "expected", "seen", "since")


def _watch_to(watch: _Watch) -> dict[str, Any]:
    return {
        "reference": watch.reference,
        "recent": list(watch.recent),
        "detectors": {direction: [each.mean, *each.sums] for direction, each in watch.detectors.items()},
        "raised": {
            direction: {name: getattr(alarm, name) for name in _OF_ALARM} for direction, alarm in watch.raised.items()
        },
    }


def _watch_from(stream: Stream, signal: Signal, document: Mapping[str, Any], settings: DriftSettings) -> _Watch:
    raised = document["raised"]
    reference = sorted(_number(value) for value in document["reference"])
    watch = _Watch(
        reference,
        deque((_number(value) for value in document["recent"]), maxlen=settings.recent),
        _detectors(signal, reference, settings) if len(reference) == settings.window else {},
        {each: _alarm_from(stream, signal, each, raised[each]) for each in DIRECTIONS if each in raised},
    )
    for direction, detector in watch.detectors.items():
        mean, *sums = document["detectors"].get(direction, [0.0])
        # Evidence against another mean, under other settings, says nothing about this one.
        if math.isclose(mean, detector.mean) and len(sums) == len(BETS):
            detector.sums = [_number(each) for each in sums]
    return watch


def _alarm_from(stream: Stream, signal: Signal, direction: Direction, document: Any) -> Alarm:
    if isinstance(document, str):  # as it was written before alarms told more than their text
        return Alarm(stream, signal, direction, document)
    text, expected, seen = (str(document[name]) for name in ("text", "expected", "seen"))
    return Alarm(stream, signal, direction, text, expected, seen, _number(document["since"]))


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number
