"""What was paid for: completions and what is known of them, in a file that survives being killed."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from ponder.errors import InputError
from ponder.types import Cost

VERSION = 1


class Ledger:
    """What is known of completions, by a key that stands for their prefix and settings: in memory, or in a JSONL file.

    A line a completion, written as it ends, and one for what else its request cost. A last line that was cut short is
    dropped. Raises InputError for a file that is no ledger. One process writes at a time.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.cost = Cost()
        """All that was ever paid."""
        self._known: dict[str, dict[int, bool]] = {}
        self._whole: int | None = None
        """Bytes of the file up to a line that was cut short, until that is removed."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def known(self, key: str) -> dict[int, bool]:
        """Whether each completion that is known is right, by its number."""
        return self._known.get(key, {})

    def alone(self, key: str) -> asyncio.Lock:
        """Held by whoever finds out about a key, so that nobody else does at the same time."""
        return self._locks.setdefault(key, asyncio.Lock())

    def add(self, key: str, index: int, reached: bool, cost: Cost) -> None:
        """Writes down a completion; one that is there stays."""
        if index not in self.known(key):
            self._write({"key": key, "index": index, "reached": reached}, cost)
            self._take(key, index, reached, cost)

    def spent(self, key: str, cost: Cost) -> None:
        """Writes down what was spent beside completions."""
        self._write({"key": key}, cost)
        self.cost += cost

    def _take(self, key: str, index: int, reached: bool, cost: Cost) -> None:
        self._known.setdefault(key, {})[index] = reached
        self.cost += cost

    def _write(self, line: dict[str, Any], cost: Cost) -> None:
        if self.path is None:
            return
        spent = {name: value for name, value in asdict(cost).items() if value != 0}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._whole is not None:  # or this line would be glued to the one that was cut short
                os.truncate(self.path, self._whole)
                self._whole = None
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"version": VERSION, **line, "cost": spent}) + "\n")
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}", "Free space, and go on") from None

    def _read(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}", "Check the path") from None
        lines = data.splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            if number == len(lines) and not line.endswith(b"\n") and _begun(line):
                self._whole = len(data) - len(line)
                return
            try:
                self._take_line(json.loads(line))
            except (ValueError, KeyError, TypeError):
                raise InputError(f"line {number} of {path} is none of a ledger", "Give another file") from None

    def _take_line(self, found: Any) -> None:
        if found["version"] != VERSION:
            raise ValueError(f"version {found['version']}")
        cost = Cost(**found["cost"])
        if "index" in found:
            self._take(str(found["key"]), int(found["index"]), bool(found["reached"]), cost)
        else:
            self.cost += cost


def _begun(line: bytes) -> bool:
    """Whether the line may be the beginning of one of a ledger's."""
    start = json.dumps({"version": VERSION})[:-1].encode()
    return line.startswith(start) or start.startswith(line)
