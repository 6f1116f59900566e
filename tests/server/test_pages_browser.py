"""The pages in a real browser: clicks, typing, streams, the keyboard, narrow and dark screens, hostile text."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import Browser, needs_chromium
from drifting import condition, drifted
from pages_server import pages_of, question
from serving import Serving

from ponder.engine._script import Fault
from ponder.evals.pooled import Spent
from ponder.evals.statistics import Interval
from ponder.evals.study import Measurement, Series, Study, dump
from ponder.ops.prompt import Turn
from ponder.ops.prompts import Prompts
from ponder.server import openai_failures
from ponder.server.app import Route
from ponder.server.http import Exchange
from ponder.server.sse import DONE, frame
from ponder.types import Cost, Sample, SampleFinished, Score, Scored, ThinkingDelta, to_dict

pytestmark = needs_chromium

THOUGHT = "17 * 20 = 340. 17 * 3 = 51."
SAID = f"<think>{THOUGHT}</think>The product is 391."
SLOW = Fault("delay", seconds=0.02, every=True, times=None)
HOSTILE = (
    '<img src=x onerror="window.hit=1"></script><script>window.hit=1</script> [x](javascript:window.hit=1) '
    "<svg onload=window.hit=1> &lt;b&gt; ${window.hit=1} </details></div>"
)
TABS = ("playground", "dashboard", "traces", "prompts", "curves")


@contextmanager
def opened(server: Serving, page: str = "playground", **more: Any) -> Iterator[Browser]:
    """A page, ready; in the end it has complained of nothing, and asked nobody else."""
    with Browser(f"{server.url}/#{page}", **more) as browser:
        browser.wait(f"!document.querySelector('#panel-{page.partition('/')[0]}')?.hidden")
        if page == "playground":
            browser.wait("document.querySelectorAll('.run:first-child select option').length > 5")
        yield browser
        assert browser.errors == []
        assert all(each.startswith(server.url) for each in browser.requests), browser.requests


def text_of(browser: Browser, selector: str) -> str:
    return str(browser.run(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''"))


def choose(browser: Browser, strategy: str) -> None:
    """As somebody who chooses in the list of strategies."""
    browser.run(
        "(() => { const s = document.querySelectorAll('.run:first-child select')[1];"
        f" s.value = {json.dumps(strategy)}; s.dispatchEvent(new Event('change')); }})()"
    )


def ask(browser: Browser, text: str) -> None:
    browser.click("#question")
    browser.write(text)
    browser.click(".ask .primary")


def until(browser: Browser, state: str) -> None:
    browser.wait(f"document.querySelector('.run').dataset.state === '{state}'", 30)


# ---------------------------------------------------------------- the playground


def told(*deltas: Mapping[str, str], seconds: float = 0.03) -> Route:
    """A chat that streams these pieces, `seconds` apart, and what they cost."""

    async def chat(exchange: Exchange, names: Mapping[str, str]) -> None:
        await exchange.body()

        async def frames() -> AsyncIterator[bytes]:
            for delta in deltas:
                yield frame({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                await asyncio.sleep(seconds)
            yield frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            details = {"reasoning_tokens": 1234}
            usage = {"prompt_tokens": 9, "completion_tokens": 2345, "completion_tokens_details": details}
            yield frame({"choices": [], "usage": {**usage, "ponder": {"dollars": 0.00042, "samples": 1}}})
            yield DONE

        await exchange.stream(frames())

    return Route("POST", "/v1/chat/completions", chat, openai_failures.failure)


def test_thinking_streams_into_a_fold_that_closes_when_the_answer_begins(tmp_path: Path) -> None:
    thoughts = [{"reasoning_content": letter} for letter in THOUGHT]
    answers = [{"content": word} for word in ("The ", "product ", "is ", "391.")]
    with pages_of(tmp_path, SAID, more=[told(*thoughts, *answers)]) as server, opened(server) as browser:
        ask(browser, "What is 17 · 23?")
        browser.wait(
            "document.querySelector('.thinking').open && document.querySelector('.thinking .thought').textContent"
        )
        assert len(text_of(browser, ".thinking .thought")) < len(THOUGHT), "it came whole"
        assert browser.run("document.querySelector('.run').dataset.state") == "thinking"
        assert browser.run("document.querySelector('.ask .primary').disabled")
        until(browser, "done")
        assert text_of(browser, ".thinking .thought") == THOUGHT
        assert not browser.run("document.querySelector('.thinking').open")
        assert text_of(browser, ".run .answer") == "The product is 391."
        assert browser.run("document.querySelector('.run .answer').getAttribute('aria-live')") == "polite"
        assert browser.run("document.querySelector('.run .answer').getAttribute('aria-busy')") == "false"
        figures = text_of(browser, ".run .figures")
        assert all(each in figures for each in ("Tokens2,345", "thinking1,234", "Prompt9", "$0.00042"))
        browser.click(".thinking summary")
        assert browser.run("document.querySelector('.thinking').open")


def test_a_fold_that_the_reader_has_touched_stays_as_it_is(tmp_path: Path) -> None:
    thoughts = [{"reasoning_content": letter} for letter in THOUGHT]
    with pages_of(tmp_path, SAID, more=[told(*thoughts, {"content": "391"})]) as server, opened(server) as browser:
        ask(browser, "What is 17 · 23?")
        browser.wait("document.querySelector('.thinking').open")
        for _ in range(2):
            browser.click(".thinking summary")
        until(browser, "done")
        assert browser.run("document.querySelector('.thinking').open")


def test_an_answer_that_breaks_off_is_no_answer(tmp_path: Path) -> None:
    async def chat(exchange: Exchange, names: Mapping[str, str]) -> None:
        await exchange.body()

        async def frames() -> AsyncIterator[bytes]:
            yield frame({"choices": [{"index": 0, "delta": {"content": "half"}, "finish_reason": None}]})

        await exchange.stream(frames())

    more = [Route("POST", "/v1/chat/completions", chat, openai_failures.failure)]
    with pages_of(tmp_path, SAID, more=more) as server, opened(server) as browser:
        ask(browser, "x")
        until(browser, "failed")
        assert "broke off" in text_of(browser, ".run [role=alert]")
        assert text_of(browser, ".run .answer") == "half"


def test_the_tree_grows_while_samples_are_drawn_and_ends_with_their_scores(tmp_path: Path) -> None:
    texts = ("<think>2 + 2 = 4.</think>4", "<think>2 + 2 = 5.</think>5")
    with pages_of(tmp_path, *texts, faults=[SLOW]) as server, opened(server) as browser:
        choose(browser, "best_of_n(8)")
        ask(browser, "2 + 2?")
        browser.wait("document.querySelectorAll('.tree > li[data-state=running]').length === 8")
        until(browser, "done")
        assert browser.run("document.querySelectorAll('.tree > li').length") == 8
        order = browser.run("[...document.querySelectorAll('.tree > li')].map(each => each.dataset.sample)")
        assert order == [str(number) for number in range(8)]
        assert browser.run("document.querySelectorAll('.tree > .best').length") == 1
        id = httpx.get(f"{server.url}/api/traces").json()[0]["id"]
        events = httpx.get(f"{server.url}/api/traces/{id}").json()["events"]
        scores = {each["sample"]: f"score {each['score']['value']:.2f}" for each in events if each["type"] == "scored"}
        shown = browser.run("[...document.querySelectorAll('.tree .score')].map(each => each.textContent)")
        assert shown == [scores[number] for number in range(8)]
        assert "8" in text_of(browser, ".samples h3")


def test_steps_of_a_search_hang_below_what_they_go_on_from(tmp_path: Path) -> None:
    texts = ("<think>2 + 2 = 4.\nSo 4.\nYes.\n</think>4", "<think>2+2=5\nso 5\n</think>5")
    with pages_of(tmp_path, *texts) as server, opened(server) as browser:
        choose(browser, "beam_search(4, 2)")
        ask(browser, "2 + 2?")
        browser.wait("['done', 'failed'].includes(document.querySelector('.run').dataset.state)", 30)
        id = httpx.get(f"{server.url}/api/traces").json()[0]["id"]
        samples = httpx.get(f"{server.url}/api/traces/{id}").json()["samples"]
        forks = [(each["index"], each["parent"]) for each in samples if each["parent"] is not None]
        assert forks
        for index, parent in forks:
            found = f"[data-sample='{parent}'] > ul > [data-sample='{index}']"
            assert browser.run(f"!!document.querySelector({json.dumps(found)})"), found


@pytest.mark.parametrize("by", ["button", "escape"])
def test_stop_ends_the_work_on_the_server_too(tmp_path: Path, by: str) -> None:
    with pages_of(tmp_path, SAID * 9, faults=[SLOW]) as server, opened(server, "playground") as browser:
        choose(browser, "chain_of_thought")
        ask(browser, "What is 17 · 23?")
        browser.wait("document.querySelector('.thinking .thought').textContent.length > 3")
        if by == "button":
            browser.click(".ask .stop")
        else:
            browser.run("document.querySelector('#question').focus()")
            browser.key("Escape", 27)
        until(browser, "stopped")
        assert not browser.run("document.querySelector('.ask .primary').disabled")
        traces = "fetch('/api/traces').then(reply => reply.json()).then(all => all[0]?.state === 'interrupted')"
        browser.wait(traces, 10)
        browser.click(".ask .primary")
        browser.wait("document.querySelector('.run').dataset.state === 'thinking'")
        browser.click(".ask .stop")
        until(browser, "stopped")


@pytest.mark.slow
def test_two_settings_run_side_by_side(tmp_path: Path) -> None:
    with pages_of(tmp_path, SAID, faults=[SLOW]) as server, opened(server) as browser:
        browser.click("#both")
        choose(browser, "direct")
        ask(browser, "What is 17 · 23?")
        browser.wait("[...document.querySelectorAll('.run')].every(each => each.dataset.state !== 'idle')")
        browser.wait("[...document.querySelectorAll('.run')].every(each => each.dataset.state === 'done')", 30)
        boxes = browser.run("[...document.querySelectorAll('.run')].map(each => each.getBoundingClientRect().top)")
        assert boxes[0] == boxes[1]
        strategies = {each["strategy"].partition("(")[0] for each in httpx.get(f"{server.url}/api/traces").json()}
        assert strategies == {"direct", "self_consistency"}


def test_settings_reach_the_server_and_its_refusals_the_reader(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    async def chat(exchange: Exchange, names: Mapping[str, str]) -> None:
        asked.append(json.loads(await exchange.body()))
        await exchange.json({"error": {"message": "the budget is used up <b>", "param": None}}, 429)

    more = [Route("POST", "/v1/chat/completions", chat, openai_failures.failure)]
    with pages_of(tmp_path, SAID, more=more) as server, Browser(server.url) as browser:
        browser.wait("document.querySelectorAll('.run:first-child select option').length > 5")
        choose(browser, "…")
        browser.wait("document.activeElement.placeholder.startsWith('vote')")
        browser.write("vote(5)")
        browser.run("document.querySelector('.run input[type=range]').focus()")
        for _ in range(10):
            browser.key("ArrowRight", 39)
        assert "tokens" in text_of(browser, ".run output")
        for place, value in ((0, "0.7"), (1, "12")):
            browser.run(f"document.querySelectorAll('.run input[type=number]')[{place}].focus()")
            browser.write(value)
        ask(browser, "x")
        until(browser, "failed")
        assert text_of(browser, ".run [role=alert]") == "the budget is used up <b>"
        (body,) = asked
        tokens = body["ponder"].pop("budget")["tokens"]
        assert text_of(browser, ".run output") == f"{tokens:,} tokens"
        assert body["ponder"] == {"strategy": "vote(5)", "deadline": 12, "progress": True}
        assert body["temperature"] == 0.7
        assert body["stream"] is True


def test_the_code_that_is_offered_asks_the_same(tmp_path: Path) -> None:
    with pages_of(tmp_path, "The product is 391.") as server, opened(server) as browser:
        choose(browser, "direct")
        ask(browser, """It's "17 · 23" \\ $HOME `id`?\nYes: 数""")
        until(browser, "done")
        found = {}
        for place in (1, 2):
            browser.click(f".run .row button:nth-of-type({place})")
            browser.wait(
                "document.querySelector('#code-dialog').open && document.querySelector('#code-status').textContent"
            )
            found[place] = browser.run("document.querySelector('#code-text').value")
            browser.key("Escape", 27)
            browser.wait("!document.querySelector('#code-dialog').open")
        environment = {**os.environ, "PONDER_KEY": "none"}
        ran = subprocess.run(["bash", "-c", found[1]], capture_output=True, text=True, env=environment, timeout=60)
        assert json.loads(ran.stdout)["choices"][0]["message"]["content"] == "The product is 391."
        ran = subprocess.run(
            [sys.executable, "-c", found[2]], capture_output=True, text=True, env=environment, timeout=60
        )
        assert (ran.stdout, ran.stderr) == ("The product is 391.\n", "")
        ids = [each["id"] for each in httpx.get(f"{server.url}/api/traces").json()]
        traces = [httpx.get(f"{server.url}/api/traces/{id}").json() for id in ids]
        assert len(traces) == 3
        assert len({json.dumps(each["question"]["messages"]) for each in traces}) == 1


# ---------------------------------------------------------------- hostile text


def test_nothing_that_a_model_says_becomes_markup(tmp_path: Path) -> None:
    sample = Sample(0, HOSTILE, thinking=HOSTILE, answer=HOSTILE)
    events = [
        ThinkingDelta(HOSTILE),
        SampleFinished(sample, Cost(thinking=5)),
        Scored(Score(0.5, "judge<b>", why=HOSTILE)),
    ]

    async def chat(exchange: Exchange, names: Mapping[str, str]) -> None:
        await exchange.body()

        async def frames() -> AsyncIterator[bytes]:
            for event in events:
                yield frame(to_dict(event), "ponder.progress")
            for delta in ({"reasoning_content": HOSTILE}, {"content": HOSTILE}):
                yield frame({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                await asyncio.sleep(0.02)
            yield DONE

        await exchange.stream(frames())

    more = [Route("POST", "/v1/chat/completions", chat, openai_failures.failure)]
    with pages_of(tmp_path, HOSTILE, more=more) as server, opened(server) as browser:
        ask(browser, HOSTILE)
        until(browser, "done")
        assert text_of(browser, ".run .answer") == HOSTILE
        assert text_of(browser, ".thinking .thought") == HOSTILE
        assert text_of(browser, ".tree .thought") == HOSTILE
        assert HOSTILE in text_of(browser, ".tree .notes")
        assert browser.run("document.querySelectorAll('main img, main script, main a[href^=javascript]').length") == 0
        assert browser.run("window.hit === undefined")


def test_nothing_in_a_trace_or_a_prompt_becomes_markup(tmp_path: Path) -> None:
    with Prompts.open(tmp_path / "prompts.db") as prompts:
        prompts.put("p", [Turn("system", HOSTILE.replace("{", ""))], note=HOSTILE.replace("{", ""))
        prompts.put("p", [Turn("system", "plain")])
    with pages_of(tmp_path, f"<think>{HOSTILE}</think>{HOSTILE}") as server:
        body = question(HOSTILE) | {"ponder": {"strategy": "vote(2)"}, "max_tokens": 2000}
        id = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).headers["x-request-id"]
        for page, ready in ((f"traces/{id}", ".steps"), ("prompts", ".diff td"), ("dashboard", "tbody")):
            with opened(server, page) as browser:
                browser.wait(f"!!document.querySelector('{ready}')")
                if page != "dashboard":
                    assert "onerror" in text_of(browser, ".detail")
                assert browser.run("document.querySelectorAll('main img, main script, main b b').length") == 0
                assert browser.run("window.hit === undefined")


# ---------------------------------------------------------------- the other pages


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server that has answered, with prompts and a study."""
    home = tmp_path_factory.mktemp("full")
    with Prompts.open(home / "prompts.db") as prompts:
        prompts.put("support", [Turn("system", "Be short.\nBe right."), Turn("user", "{{ ask }}")])
        prompts.put("support", [Turn("system", "Be kind.\nBe right.\nAsk back."), Turn("user", "{{ ask }}")])
        prompts.tag("support@1", "prod")
    points = tuple(
        Measurement(
            f"vote({n})", None, Spent(100.0 * n, 0.5 * n, None, None), 0.3 + n / 50, Interval(0.2, 0.7), (1.0, 0.0)
        )
        for n in (1, 4, 16)
    )
    (home / "studies").mkdir()
    study = Study(
        "arithmetic",
        "ponder-135m",
        ("a", "b"),
        0.1,
        "4",
        (Series("vote", points), Series("coverage", points[:2], True)),
    )
    dump(study, home / "studies" / "first.json")
    with pages_of(home, SAID) as server:
        for number in range(4):
            body = question(f"What is 17 · {number}? {'long ' * 40}") | {"ponder": {"strategy": "vote(3)"}}
            httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        httpx.post(f"{server.url}/v1/chat/completions", json=question("x") | {"model": "nobody"})
        yield server


READY = {
    "playground": "#question",
    "dashboard": "#panel-dashboard section tbody td",
    "traces": ".found a",
    "prompts": ".diff td",
    "curves": "#panel-curves polyline",
}


@pytest.mark.parametrize("page", TABS)
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_fits_a_phone_and_both_schemes(full: Serving, page: str, dark: bool) -> None:
    with opened(full, page, dark=dark, width=390, height=844) as browser:
        browser.wait(f"!!document.querySelector('{READY[page]}')")
        assert browser.run("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        ground = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
        assert (ground < 60) == dark
        unnamed = browser.run(
            "[...document.querySelectorAll('input, select, textarea, button')].filter(each => each.offsetParent"
            " && !each.labels?.length && !each.getAttribute('aria-label') && !each.textContent.trim()).length"
        )
        assert unnamed == 0
        assert browser.run("document.querySelectorAll('main').length") == 1
        small = browser.run(CONTRAST)
        assert small == [], small


CONTRAST = """(() => {
  const channels = (text) => { const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    c.fillStyle = text; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data]; };
  const light = (c) => { const [r, g, b] = c.map((v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) {
    const s = getComputedStyle(e), c = channels(s.backgroundColor);
    if (c[3] > 250 || s.backgroundImage !== 'none') return c; } return [255, 255, 255]; };
  const low = [];
  for (const e of document.querySelectorAll('main *, header *')) {
    if (!e.offsetParent || e.closest('svg') || e.disabled) continue;
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const a = light(channels(getComputedStyle(e).color).slice(0, 3)), b = light(ground(e).slice(0, 3));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) low.push([e.tagName, e.className, e.textContent.slice(0, 30), ratio]);
  }
  return low;
})()"""


def test_a_trace_fits_a_phone_and_hides_the_list(full: Serving) -> None:
    id = httpx.get(f"{full.url}/api/traces?search=long").json()[0]["id"]
    with opened(full, f"traces/{id}", width=390, height=844) as browser:
        browser.wait("!!document.querySelector('.steps li')")
        assert browser.run("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        browser.click(".back")
        browser.wait("document.querySelector('.side').offsetParent !== null")


def test_the_tabs_go_by_keyboard(full: Serving) -> None:
    with opened(full) as browser:
        browser.run("document.querySelector('#tab-playground').focus()")
        for name in (*TABS[1:], TABS[0]):
            browser.key("ArrowRight", 39)
            browser.wait(f"!document.querySelector('#panel-{name}').hidden")
            assert browser.run("document.activeElement.id") == f"tab-{name}"
            assert browser.run("[...document.querySelectorAll('[role=tab][aria-selected=true]')].map(e => e.id)") == [
                f"tab-{name}"
            ]
            assert browser.run("document.querySelectorAll('[role=tabpanel]:not([hidden])').length") == 1
            assert browser.run("document.querySelectorAll('[role=tab][tabindex=\"0\"]').length") == 1
        browser.key("End", 35)
        browser.wait("!document.querySelector('#panel-curves').hidden")
        browser.key("Tab", 9)
        assert browser.run("document.activeElement.id") == "key-button"


def test_the_theme_is_chosen_and_kept(full: Serving) -> None:
    with opened(full) as browser:
        ground = "getComputedStyle(document.body).backgroundColor"
        light = browser.run(ground)
        browser.click("#theme-button")
        assert browser.run(ground) == light
        browser.click("#theme-button")
        dark = browser.run(ground)
        assert dark != light
        browser.send("Page.reload")
        browser.wait(
            "document.readyState === 'complete' && document.querySelector('#theme-button').title === 'Theme: dark'"
        )
        assert browser.run(ground) == dark


def test_the_dashboard_tells_of_upstreams_and_ends_an_alarm(tmp_path: Path) -> None:
    drift = drifted()
    with pages_of(tmp_path, "4", condition=condition(drift)) as server, opened(server, "dashboard") as browser:
        browser.wait("!!document.querySelector('#upstreams td') && !!document.querySelector('#drift td')")
        upstreams, alarm = text_of(browser, "#upstreams tbody"), text_of(browser, "#drift tbody")
        for words in ("well", "ill", "left alone", "timeout"):
            assert words in upstreams
        for words in ("support v3", "length up", "median 100 tokens", "median 900 tokens"):
            assert words in alarm
        browser.click("#drift button")
        browser.wait("!document.querySelector('#drift td')")
        assert "No alarm stands" in text_of(browser, "#drift")
        assert not drift.alarms()


def test_the_dashboard_goes_on_by_itself(full: Serving) -> None:
    with opened(full, "dashboard") as browser:
        browser.wait("!!document.querySelector('#panel-dashboard section:last-child tbody td')")
        rows = "document.querySelectorAll('#panel-dashboard section:last-child tbody tr').length"
        before = browser.run(rows)
        assert "live" in text_of(browser, ".live")
        assert browser.run("[...document.querySelectorAll('.bad')].some(each => each.textContent === '404')")
        httpx.post(f"{full.url}/v1/chat/completions", json=question("now"), timeout=60)
        browser.wait(f"{rows} === {before + 1}", 10)
        browser.click("#panel-dashboard section:last-child tbody a")
        browser.wait("document.querySelector('.detail .message .words')?.textContent === 'now'")


def test_traces_are_searched_and_looked_at_step_by_step(full: Serving) -> None:
    with opened(full, "traces") as browser:
        browser.wait("document.querySelectorAll('.found a').length > 3")
        browser.click("input[type=search]")
        browser.write("17 · 2?")
        browser.wait("document.querySelectorAll('.found a').length === 1")
        browser.click(".found a")
        browser.wait("document.querySelectorAll('.steps > li').length > 3")
        assert browser.run("document.querySelectorAll('.detail .tree > li').length") == 3
        assert browser.run("document.querySelector('.found a').getAttribute('aria-current')") == "true"
        browser.click(".steps summary")
        assert browser.run("document.querySelector('.steps details').open")
        browser.click("input[type=search]")
        browser.write("nothing like it")
        browser.wait("document.querySelector('.found .empty')?.textContent.includes('No trace')")


def test_two_versions_of_a_prompt_stand_side_by_side(full: Serving) -> None:
    with opened(full, "prompts") as browser:
        browser.wait("!!document.querySelector('.diff td')")
        rows = browser.run(
            "[...document.querySelectorAll('.diff section:first-child .changed')]"
            ".map(row => [...row.cells].map(cell => cell.textContent))"
        )
        assert rows == [["Be short.", "Be kind."], ["", "Ask back."]]
        assert "prod" in text_of(browser, ".versions")


def test_curves_are_drawn_with_their_intervals_and_can_be_hidden(full: Serving) -> None:
    with opened(full, "curves") as browser:
        browser.wait("!!document.querySelector('#panel-curves polyline')")
        assert browser.run("document.querySelectorAll('#panel-curves .interval').length") == 5
        assert browser.run("document.querySelectorAll('#panel-curves tbody tr').length") == 5
        places = browser.run(
            "[...document.querySelectorAll('#panel-curves .series.c0 circle')].map(c => Number(c.getAttribute('cx')))"
        )
        assert abs((places[1] - places[0]) - (places[2] - places[1])) < 1e-6, (
            "1, 4, 16 lie evenly on a logarithmic axis"
        )
        browser.click(".toggle")
        browser.wait("document.querySelectorAll('#panel-curves .interval').length === 2")
        assert browser.run("document.querySelector('.toggle').getAttribute('aria-pressed')") == "false"


# ---------------------------------------------------------------- keys


def test_a_server_with_keys_asks_for_one_and_the_page_keeps_it_for_the_tab_alone(tmp_path: Path) -> None:
    from ponder.ops.keys import Keys

    with Keys.open(tmp_path / "ledger.db") as keys:
        _, secret = keys.add("alice")
    with pages_of(tmp_path, SAID, keys=True) as server, Browser(server.url) as browser:
        browser.wait("document.querySelector('#key-dialog').open")
        assert "key" in text_of(browser, "#panel-playground [role=alert]")
        browser.click("#key-input")
        browser.write(secret)
        browser.click("#key-form .primary")
        browser.wait("document.querySelectorAll('.run:first-child select option').length > 5")
        assert not browser.run("document.querySelector('#key-dialog').open")
        ask(browser, "What is 17 · 23?")
        until(browser, "done")
        browser.click(".run .row button:nth-of-type(1)")
        assert secret not in browser.run("document.querySelector('#code-text').value")
        assert browser.run("JSON.stringify(localStorage)").count(secret) == 0
        assert browser.run("document.cookie") == ""
        assert browser.run("JSON.stringify(sessionStorage)").count(secret) == 1
        assert not any(secret in each for each in browser.requests)
        assert all("401" in each for each in browser.errors)
