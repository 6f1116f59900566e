"""The page of a run, in a real browser and without one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from browser import Browser, needs_chromium

from ponder.errors import InputError, TrainingError
from ponder.train import page

HOSTILE = "<script>document.title = 'run'</script>"


def run_folder(folder: Path, steps: int = 40, **more: float) -> Path:
    """What a run of reinforcement learning leaves, its numbers made up from the step."""
    lines: list[dict[str, object]] = [{"note": {"kind": "grpo", "steps": 100, "data": {"questions": 7}}}]
    for step in range(1, steps + 1):
        values = {"loss": 1 / step, "reward": step / 100, "length": 100.0 + step, "kl": 0.01 * step}
        values |= {"gradient_norm": 1.0, "rate": 1e-4, "tokens": 1000, "seconds": 0.5, **more}
        lines.append({"step": step, "time": 1.0, **values})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.toml").write_text('kind = "grpo"\n')
    (folder / "rollouts").mkdir(exist_ok=True)
    rollouts = [
        {
            "question": f"{HOSTILE} {number}+1?",
            "thinking": "Hm.",
            "answer": f"{number}",
            "ids": [1, 2],
            "finish": "stop",
        }
        for number in range(40)
    ]
    text = "".join(json.dumps(each) + "\n" for each in rollouts)
    (folder / "rollouts" / "step-00000040-0-000.jsonl").write_text(text + '{"question": "cut')
    return folder


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_draws_its_curves(tmp_path: Path, dark: bool) -> None:
    pytest.importorskip("plotly")
    path = page.write(run_folder(tmp_path / "run"))
    with Browser(path, dark=dark, width=1000) as browser:
        browser.wait("document.querySelectorAll('.chart .scatterlayer .trace').length >= 7")
        titles = browser.run("[...document.querySelectorAll('figcaption')].map(each => each.textContent.trim())")
        assert titles == [
            "Loss", "Reward mean of a rollout", "Length tokens of a rollout", "KL to the reference nats a token",
            "Gradient norm before clipping", "Learning rate", "Speed tokens a second",
        ]  # fmt: skip
        # A long run shows its trend beside its steps.
        assert browser.run("document.querySelectorAll('.chart')[0].querySelectorAll('.trace').length") == 2
        assert browser.run("document.title") == "run: grpo"
        assert browser.errors == []
        assert all(request.startswith(("data:", path.as_uri())) for request in browser.requests)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        browser.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000


@needs_chromium
def test_it_fits_a_narrow_screen(tmp_path: Path) -> None:
    with Browser(page.write(run_folder(tmp_path / "run")), width=390) as browser:
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")


def test_without_plotly_there_are_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    text = page.render(run_folder(tmp_path / "run"))
    assert "<script" not in text.replace("&lt;script", "")
    assert "script-src &#39;none&#39;" in text
    assert "pip install &#39;ponder[plots]&#39;" in text or "pip install 'ponder[plots]'" in text
    assert '<th scope="row" class="number">40</th>' in text
    assert "<dd>0.4</dd>" in text  # the reward of the last step


def test_rollouts_are_spread_and_harmless(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    found = page.rollouts(folder, 8)
    assert [each["answer"] for each in found] == ["0", "5", "10", "15", "20", "25", "30", "35"]
    text = page.render(folder)
    assert HOSTILE not in text
    assert "&lt;script&gt;document.title" in text


def test_a_long_run_is_thinned(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": float(step)} for step in range(1, 4001)]
    chart = page._chart(lines, "loss", "Loss", "")
    assert len(chart["x"]) == page.POINTS
    assert (chart["x"][-1], chart["y"][0]) == (4000, 2.5)
    assert [line["step"] for line in page._thinned(lines, 4)] == [4000, 3000, 2000, 1000]


def test_values_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", steps=3, entropy=float("nan"))
    text = page.render(folder)
    assert "NaN" not in text.partition('id="data"')[2].partition("</script>")[0]


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"note": {"kind": "sft"}}\n')
    assert "No step was taken yet." in page.render(tmp_path)
    with pytest.raises(InputError, match="holds no training run"):
        page.render(tmp_path / "nowhere")


def test_it_is_renewed_when_due_and_at_the_end(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", steps=3)
    path, tracker = folder / "page.html", page.PageTracker(folder, every=2)
    tracker.log(1, {})
    assert not path.exists()
    tracker.log(2, {})
    first = path.stat().st_mtime_ns
    tracker.log(3, {})
    assert path.stat().st_mtime_ns == first
    tracker.close()
    assert path.stat().st_mtime_ns > first
    last = path.stat().st_mtime_ns
    tracker.close()
    assert path.stat().st_mtime_ns == last


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", steps=3)
    (folder / "page.part").mkdir()
    with pytest.raises(TrainingError, match="cannot be written"):
        page.write(folder)


@pytest.mark.parametrize(
    ("value", "shown"), [(1234, "1,234"), (0.01234, "0.0123"), (12345.6, "12,346"), (2000.0, "2,000"), ("x", "–")]
)
def test_numbers(value: object, shown: str) -> None:
    assert page.number(value) == shown
