"""Stop strings: the text up to the first of them, whatever pieces it comes in."""

from __future__ import annotations

from collections.abc import Sequence


class Stopper:
    """Passes text on until one of `stops` has come; what may still become one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.met: str | None = None

    def feed(self, text: str) -> str:
        """What of the text may be shown now. Once a stop was met, nothing more."""
        if self.met is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        places = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if places:
            place, self.met = min(places, key=lambda found: (found[0], -len(found[1])))
            self._held = ""
            return text[:place]
        keep = max(self._beginning(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back, when no more comes."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _beginning(text: str, stop: str) -> int:
        """Length of the longest end of `text` with which `stop` begins."""
        longest = min(len(stop) - 1, len(text))
        return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
