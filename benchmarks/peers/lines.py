"""What the two peers' programs share: their arguments, questions in, what the server counted, lines out."""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COUNTERS = {
    "tokens": "llamacpp:tokens_predicted_total",
    "prompt_computed": "llamacpp:prompt_tokens_total",
    "prompt_cached": "llamacpp:prompt_tokens_cached_total",
}


@dataclass(frozen=True)
class Asked:
    """A line of the file of questions."""

    id: str
    text: str


@dataclass(frozen=True)
class Found:
    """What a peer made of a question: its choice, as it gave it, and the samples it chose from where it shows them."""

    chosen: str
    samples: list[str]


def parser(about: str | None, methods: tuple[str, ...]) -> argparse.ArgumentParser:
    """The arguments that both programs take."""
    found = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("method", choices=methods)
    found.add_argument("questions", type=Path, help='JSON lines: {"id": ..., "question": ...}')
    found.add_argument("--url", required=True, help="of the server, as serve.py prints it")
    found.add_argument("--n", type=int, default=8, help="samples a question")
    found.add_argument("--temperature", type=float, default=0.7)
    found.add_argument("--max-tokens", type=int, default=256, help="of one sample")
    return found


def questions(path: Path) -> Iterator[Asked]:
    """The questions of the file, numbered where they have no id."""
    if not path.is_file():
        raise SystemExit(f"there is no file {path}")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        if line.strip():
            row = json.loads(line)
            yield Asked(str(row.get("id", number)), row["question"])


def slots(url: str) -> int:
    """How many samples the server computes side by side."""
    return int(json.loads(_get(f"{url}/props"))["total_slots"])


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url) as reply:
            text: str = reply.read().decode()
    except OSError as error:
        raise SystemExit(f"{url} does not answer ({error}): is serve.py running?") from None
    return text


class Account:
    """What one question cost: seconds, and the server's own counts.

    The counts come from the server's metrics. The `usage` of its replies will not do: with n > 1 it
    counts one sample. So one program at a time may use the server, and one question.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._before: dict[str, int] = {}
        self._seconds = 0.0

    def _counts(self) -> dict[str, int]:
        text = _get(f"{self._url}/metrics")
        lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
        values = {words[0]: words[-1] for words in lines if words}
        return {name: int(float(values[counter])) for name, counter in COUNTERS.items()}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measures what is done inside."""
        self._before = self._counts()
        start = time.perf_counter()
        yield
        self._seconds = time.perf_counter() - start

    def line(self, asked: Asked, found: Found) -> str:
        """The line to print for the question that was measured last."""
        now = self._counts()
        return json.dumps(
            {
                "id": asked.id,
                "answer": answer(found.chosen),
                "samples": found.samples,
                "seconds": round(self._seconds, 4),
                **{name: now[name] - self._before[name] for name in COUNTERS},
            },
            ensure_ascii=False,
        )


def answer(text: str) -> str:
    """What follows the thinking; all of it where the thinking was not closed, as a user of the peer would see it."""
    return text.rpartition("</think>")[2].strip()
