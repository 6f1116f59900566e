"""The page in a real browser: what it draws, what it refuses to run, and how it is used without a mouse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from browser import Browser, needs_chromium
from studies import run_of, study

from ponder.errors import MissingExtra
from ponder.evals import report
from ponder.evals.derive import study_of
from ponder.evals.recommend import recommend
from ponder.evals.statistics import Interval

pytest.importorskip("plotly", reason="the report needs ponder[plots]")

LINES = "#curve .scatterlayer .trace"


class Page(HTMLParser):
    """The elements of a page, as (name, attributes), and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._hidden = tag if tag in ("script", "style") else self._hidden

    def handle_endtag(self, tag):
        self._hidden = "" if tag == self._hidden else self._hidden

    def handle_data(self, data):
        self.text += "" if self._hidden else data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    made = study()
    report.write(made, path, recommend(made))
    return path


@pytest.fixture(scope="module")
def parsed(page: Path) -> Page:
    return Page(page.read_text("utf-8"))


# ---------------------------------------------------------------- the file


def test_it_is_one_file_that_asks_for_nothing(page, parsed):
    assert page.stat().st_size < 6e6
    for name, attribute in (("script", "src"), ("link", "href"), ("img", "src"), ("a", "href"), ("iframe", "src")):
        for attributes in parsed.all(name):
            assert (attributes.get(attribute) or "#").startswith(("#", "data:")), (name, attributes)
    (security,) = [each["content"] for each in parsed.all("meta") if "http-equiv" in each]
    assert security.startswith("default-src 'none'; script-src 'sha256-")
    assert "'unsafe-inline'" not in security.split("style-src")[0]
    assert not re.search(r"https?:", security)
    style = page.read_text("utf-8").partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_every_measurement_is_in_the_table_with_its_interval(parsed):
    made = study()
    text = " ".join(parsed.text.split())
    for series in made.series:
        for point in series.points:
            assert f"{point.label}" in text
            assert f"{report.percent(point.accuracy)} ({report.span(point.interval)})" in text
            assert f"({report.change(point.short.interval)})" in text or point is made.best
        if series.gain:
            assert f"{report.points(series.gain.value)} ({report.change(series.gain.interval)})" in text
    assert made.gap is not None
    assert f"{report.points(made.gap.difference.value)}{report.change(made.gap.difference.interval)}" in text
    rows = [each for each in parsed.all("tr") if (each.get("class") or "") == "frontier"]
    assert len(rows) == len(made.frontier())


def test_the_policy_stands_there_with_its_reasons(parsed):
    text = " ".join(parsed.text.split())
    for name, effort in recommend(study()).efforts.items():
        assert name in text
        assert f"{effort.strategy} within {effort.budget:,} tokens" in text
        assert report.sentence(effort.why) + "." in text
        assert f"{report.percent(effort.accuracy)}{report.span(effort.interval)}" in text


def test_how_it_was_made_is_told(parsed):
    for told in ("ponder curve sums.jsonl", "2 cores", "ponder 0.1.0", "2025-01-31", "abababababababab", "0.7"):
        assert told in parsed.text


def test_what_a_model_wrote_is_text(page, parsed):
    source = page.read_text("utf-8")
    assert "<script>document.title" not in source
    assert "<img" not in source.partition('id="data"')[0].replace("&lt;img", "")
    assert "<script>document.title = 'taken'</script>" in parsed.text
    assert "<img src=x onerror=alert(1)>" in parsed.text
    assert "What is 3 + 4? </script><b>&amp;" in parsed.text


def test_names_cannot_end_the_data(tmp_path):
    run = run_of("direct", 64, [0, 1, 1, 1])
    named = replace(run, task="</script><script>alert(1)</script>", model="<b>&")
    source = report.render(study_of(None, [named]))
    data = source.partition('id="data">')[2].partition("</script>")[0]
    assert [series["name"] for series in json.loads(data)["series"]] == ["direct"]
    assert "<script>alert" not in source
    assert "Too little was measured to choose by." in source


def test_tables_and_controls_have_names(parsed):
    source = parsed.elements
    assert parsed.all("html")[0]["lang"] == "en"
    assert len(parsed.all("caption")) == len(parsed.all("table")) == 2
    assert all(each.get("scope") for each in parsed.all("th"))
    labelled = {each["for"] for each in parsed.all("label")}
    assert {each["id"] for each in parsed.all("input")} == labelled
    (figure,) = [attributes for _, attributes in source if attributes.get("id") == "curve"]
    assert figure["role"] == "img"
    assert figure["aria-label"]
    ids = [attributes["id"] for _, attributes in source if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in source:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name, ids[0]) in ids
    levels = [int(tag[1]) for tag, _ in source if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_unknown_costs_have_no_axis():
    made = study()
    unknown = replace(
        made,
        series=tuple(
            replace(
                each, points=tuple(replace(p, spent=p.spent._replace(flops=None, dollars=None)) for p in each.points)
            )
            for each in made.series
        ),
    )
    parsed = Page(report.render(unknown))
    assert [each["value"] for each in parsed.all("input")] == ["tokens", "seconds"]
    assert "Dollars" not in parsed.text


def test_without_plotly_one_line_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingExtra, match=r"the report needs plotly. pip install 'ponder\[plots\]'"):
        report.render(study())


def test_plotly_is_loaded_only_to_make_a_page():
    program = "import sys, ponder.evals.report, ponder.evals.plot; print({'plotly', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_numbers_in_words():
    assert report.percent(0.1234) == "12.3%"
    assert report.span(Interval(0.1, 0.256)) == "10.0 to 25.6"
    assert report.points(-0.012) == "−1.2"
    assert report.change(Interval(-0.012, 0.3)) == "−1.2 to 30.0"
    assert [report.count(each) for each in (None, 0.034, 9, 9.51, 1234.5)] == ["–", "0.034", "9", "9.5", "1,234"]
    assert [report.flops(each) for each in (None, 12.0, 3.21e9, 4.5e13)] == ["–", "12", "3.21 G", "45 T"]
    assert [report.dollars(each) for each in (None, 0, 0.000049, 0.12, 3.5)] == [
        "–", "$0.00", "$0.000049", "$0.12", "$3.50",
    ]  # fmt: skip


# ---------------------------------------------------------------- in a browser


@needs_chromium
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 390)])
def test_it_draws_every_curve_without_a_complaint(page, dark, width):
    made = study()
    with Browser(page, dark, width) as browser:
        browser.wait(f"document.querySelectorAll('{LINES}').length === {len(made.series) + 1}")
        drawn = browser.run("document.querySelectorAll('#curve .points path').length")
        assert drawn == sum(len(series.points) for series in made.series)
        assert browser.run("document.documentElement.scrollWidth") == width
        assert browser.run("document.title") == "What thinking buys tiny on sums"
        ground = browser.run("getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"\d+", ground)[0]) < 60) == dark
        assert browser.errors == []
        assert browser.requests == [page.as_uri()]


@needs_chromium
def test_the_axis_is_switched_by_the_keyboard(page):
    with Browser(page) as browser:
        browser.wait(f"document.querySelectorAll('{LINES}').length > 1")
        title = "document.querySelector('#curve .xtitle').textContent"
        place = "document.querySelector('#curve .points path').getAttribute('transform')"
        assert browser.run(title) == "tokens a question"
        before = browser.run(place)
        browser.run("document.getElementById('axis-tokens').focus()")
        for wanted in ("seconds", "FLOPs", "dollars"):
            browser.key("ArrowRight", 39)
            browser.wait(f"{title} === '{wanted} a question'")
        assert browser.run(place) != before
        assert browser.run("document.querySelector('input:checked').value") == "dollars"
        assert browser.run("[...document.querySelectorAll('#curve .xtick')].every(t => t.textContent.startsWith('$'))")
        assert browser.errors == []


@needs_chromium
def test_a_series_is_hidden_and_shown_again(page):
    series = len(study().series)
    with Browser(page) as browser:
        browser.wait(f"document.querySelectorAll('{LINES}').length === {series + 1}")
        browser.run("document.querySelector('#legend button[data-series=\"1\"]').focus()")
        for pressed, count in (("false", series), ("true", series + 1)):
            browser.key("Enter", 13, "\r")
            browser.wait(f"document.querySelectorAll('{LINES}').length === {count}")
            assert browser.run("document.activeElement.getAttribute('aria-pressed')") == pressed
        browser.run("document.querySelectorAll('#legend button').forEach(button => button.click())")
        browser.wait(f"document.querySelectorAll('{LINES} .points path').length === 0")
        assert browser.errors == []


@needs_chromium
def test_the_table_is_sorted(page):
    made = study()
    heights = sorted(point.accuracy for series in made.series for point in series.points)
    column = "[...document.querySelectorAll('#points tbody tr')].map(r => Number(r.cells[1].dataset.value))"
    head = "document.querySelectorAll('#points thead th')[1]"
    with Browser(page) as browser:
        browser.run(f"{head}.querySelector('button').click()")
        assert browser.run(column) == heights
        assert browser.run(f"{head}.getAttribute('aria-sort')") == "ascending"
        browser.run(f"{head}.querySelector('button').click()")
        assert browser.run(column) == heights[::-1]
        assert browser.run("document.querySelectorAll('[aria-sort=ascending]').length") == 0


@needs_chromium
def test_even_unescaped_text_could_run_nothing_and_tell_nobody(page, tmp_path):
    """The page as it would be if escaping failed: the policy blocks scripts, handlers, pictures and connections."""
    attack = (
        "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
        "<img src='http://127.0.0.1:9/secret'><a id=link href=\"javascript:document.title = 'taken'\">x</a>"
    )
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(page.read_text("utf-8").replace("<main>", "<main>" + attack), "utf-8")
    with Browser(spoilt) as browser:
        browser.run("document.getElementById('link').click()")
        browser.wait(f"document.querySelectorAll('{LINES}').length > 1")
        assert browser.run("document.title") == "What thinking buys tiny on sums"
        assert len(browser.errors) >= 3
        assert all("Content Security Policy" in each for each in browser.errors)
        assert browser.run("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'blocked')") == "blocked"
        assert "http://127.0.0.1:9/secret" not in browser.requests
