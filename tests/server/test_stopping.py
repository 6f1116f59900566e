"""Stop strings against a search of the whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ponder.server.stopping import Stopper

LETTERS = st.text("ab<>", max_size=12)


@given(st.lists(LETTERS, max_size=6), st.lists(st.text("ab<>", min_size=1, max_size=4), max_size=3))
def test_shows_the_text_up_to_the_first_stop_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    stopper, shown = Stopper(stops), ""
    for piece in pieces:
        shown += stopper.feed(piece)
    shown += stopper.rest()
    text = "".join(pieces)
    places = [text.find(stop) for stop in stops if stop in text]
    if places and stopper.met is not None:
        assert text.startswith(shown + stopper.met)
    assert (stopper.met is not None) == bool(places)
    if not places:
        assert shown == text
    else:  # a stop is met as soon as it is complete, and one that begins earlier may not be
        assert min(places) <= len(shown) <= min(text.find(stop) + len(stop) for stop in stops if stop in text)


def test_passes_on_what_can_be_no_stop() -> None:
    stopper = Stopper(["###"])
    assert stopper.feed("a#") == "a"
    assert stopper.feed("b") == "#b"
    assert stopper.feed("c##") == "c"
    assert stopper.feed("#d") == ""
    assert stopper.met == "###"
    assert stopper.feed("more") == stopper.rest() == ""


def test_without_stops_nothing_is_held_back() -> None:
    stopper = Stopper([])
    assert stopper.feed("text") == "text"
    assert stopper.rest() == ""
