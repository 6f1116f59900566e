"""The picture: it is there, it has the series, and it needs its extra."""

from __future__ import annotations

import struct
import sys

import pytest
from studies import run_of, study

from ponder.errors import MissingExtra
from ponder.evals.derive import study_of
from ponder.evals.plot import OTHERS, draw, looks

pytest.importorskip("matplotlib", reason="pictures need ponder[plots]")


def test_a_picture_is_drawn(tmp_path):
    path = tmp_path / "new" / "curve.png"
    draw(study(), path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > 1000
    assert height > 500


def test_the_picture_holds_every_series_with_its_intervals(tmp_path):
    path, made = tmp_path / "curve.svg", study()
    draw(made, path)
    text = path.read_text("utf-8")
    for series in made.series:
        assert f"<!-- {series.name}" in text  # matplotlib notes each text beside its outlines
    assert "<!-- tiny on sums, 40 questions -->" in text
    assert text.count("LineCollection") == 2 * len(made.series)  # the bars, and their samples in the legend


def test_a_name_is_no_formula(tmp_path):
    made = study_of(None, [run_of("direct", 64, [0, 1])])
    draw(type(made)(**{**vars(made), "task": r"a$\frac$b_{"}), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_every_series_has_a_look_of_its_own():
    names = [
        "direct",
        "chain_of_thought",
        "vote(8)",
        "best_of_n(a)",
        "best_of_n(b)",
        "beam_search(4)",
        "beam_search(8)",
    ]
    found = looks(study_of(None, [run_of(name, 64, [0, 1]) for name in names]))
    assert len(set(found.values())) == len(names)
    assert sum(look in OTHERS for look in found.values()) == 3


def test_without_matplotlib_one_line_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"pictures need matplotlib. pip install 'ponder\[plots\]'"):
        draw(study(), tmp_path / "curve.png")
