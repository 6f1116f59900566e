// The dashboard: what the server is at, and what it was at, live.

import { h, put, empty, trouble, table, select } from "/pages/dom.js";
import { ask, events, get } from "/pages/wire.js";
import { chart, figure, key } from "/pages/charts.js";
import { condition } from "/pages/state.js";
import { clock, count, digits, dollars, quantile, seconds, short } from "/pages/format.js";

const MOST = 500, ROWS = 25, BARS = 60;
const micro = (value) => dollars(value === undefined || value === null ? null : value / 1e6);
const sum = (rows, name) => rows.reduce((total, each) => total + (each[name] ?? 0), 0);

export function open(panel) {
  let requests = [], state = { running: 0, waiting: 0 }, costs = null, by = "model", watching = null, planned = false, again = 1000;

  const live = h("span", { class: "live", role: "status" }, "connecting");
  const tiles = h("dl", { class: "tiles" });
  const health = condition();
  const recent = h("div"), spent = h("div"), problem = h("div");
  const latency = figure("Seconds a request", (width) => drawLatency(width));
  const tokens = figure("Tokens a request", (width) => drawTokens(width));
  const daily = figure("Cost a day", (width) => drawDays(width));
  latency.legend.append(key(0, "whole"), key(1, "first token"), key("bad", "failed"));
  tokens.legend.append(key(1, "thinking"), key(0, "answer"));
  const choice = select([["model", "model"], ["key", "key"], ["prompt", "prompt"], ["strategy", "strategy"]], by, {
    change: (event) => { by = event.target.value; drawCosts(); },
  });
  choice.id = "costs-by";

  put(panel,
    h("div", { class: "head" }, h("h1", {}, "Dashboard"), live),
    problem, tiles,
    h("div", { class: "figures-grid" }, latency.element, tokens.element),
    h("section", {}, h("div", { class: "head" }, h("h2", {}, "Costs, last 30 days"),
      h("span", { class: "check" }, h("label", { for: "costs-by" }, "by"), choice)),
    h("div", { class: "figures-grid" }, daily.element, spent)),
    ...health.elements,
    h("section", {}, h("h2", {}, "Requests"), recent));

  // ---------------------------------------------------------------- drawing

  function draw() {
    planned = false;
    const good = requests.filter((each) => each.ok);
    const times = good.map((each) => each.seconds);
    const failed = requests.length - good.length;
    const minute = Date.now() / 1000 - 60;
    const lately = requests.filter((each) => each.when > minute);
    put(tiles, [
      ["At work", count(state.running), `${count(state.waiting)} waiting`],
      ["Requests", count(requests.length), `${count(lately.length)} in the last minute`],
      ["Latency, median", seconds(quantile(times, 0.5)), `99th percentile ${seconds(quantile(times, 0.99))}`],
      ["First token, median", seconds(quantile(good.filter((each) => each.first_token !== undefined).map((each) => each.first_token), 0.5)),
        `99th percentile ${seconds(quantile(good.filter((each) => each.first_token !== undefined).map((each) => each.first_token), 0.99))}`],
      ["Tokens", short(sum(requests, "output_tokens")), `${short(sum(requests, "reasoning_tokens"))} of them thinking`],
      ["Failed", count(failed), requests.length ? `${digits((100 * failed) / requests.length)}%` : "none yet"],
    ].map(([name, value, note]) => h("div", {}, h("dt", {}, name), h("dd", {}, h("b", {}, value), " ", h("span", {}, note)))));
    latency.redraw();
    tokens.redraw();
    drawRecent();
  }

  function drawLatency(width) {
    const at = (name) => requests.filter((each) => each.ok && each[name] !== undefined)
      .map((each) => ({ x: each.when, y: each[name], title: `${each.model || each.answered}: ${seconds(each[name])}` }));
    const bad = requests.filter((each) => !each.ok).map((each) => ({ x: each.when, y: each.seconds, title: `${each.status} ${each.error ?? "left"}` }));
    return chart({
      width, height: 220, y: { zero: true, format: seconds }, x: { format: clock, ticks: spread(requests.map((each) => each.when), width) },
      label: `Seconds of the last ${requests.length} requests`,
      series: [
        { kind: "dots", colour: 0, points: at("seconds") }, { kind: "dots", colour: 1, points: at("first_token") },
        { kind: "dots", colour: "bad", points: bad },
      ],
    });
  }

  function drawTokens(width) {
    const last = requests.slice(-BARS);
    const bars = (from, to, name) => last.map((each, x) => ({ x, from: from(each), y: to(each), title: `${each.model || each.answered}: ${count(to(each) - from(each))} ${name}` }));
    const thought = (each) => each.reasoning_tokens ?? 0, all = (each) => each.output_tokens ?? 0;
    return chart({
      width, height: 220, y: { zero: true }, x: { ticks: [], title: `the last ${last.length} requests` }, label: `Tokens of the last ${last.length} requests`,
      series: [{ kind: "bars", colour: 1, points: bars(() => 0, thought, "tokens of thinking") }, { kind: "bars", colour: 0, points: bars(thought, all, "tokens of answers") }],
    });
  }

  function drawDays(width) {
    const days = costs?.day ?? [];
    const priced = days.some((each) => each.micro);
    daily.element.querySelector("figcaption").firstChild.textContent = priced || !days.length ? "Cost a day" : "Tokens a day (no price is known)";
    const value = (each) => (priced ? each.micro / 1e6 : each.prompt + each.completion);
    const points = days.map((each) => ({ x: Date.parse(each.name) / 1000, y: value(each), title: `${each.name}: ${priced ? micro(each.micro) : count(value(each))}` }));
    return chart({
      width, height: 220, y: { zero: true, format: priced ? dollars : short }, label: "Cost of each day",
      x: { ticks: points.filter((_, at) => at % Math.ceil(points.length / 8) === 0).map((each) => each.x), format: (when) => new Date(when * 1000).toISOString().slice(5, 10) },
      series: [{ kind: "bars", colour: 0, points }],
    });
  }

  function drawCosts() {
    const rows = costs?.[by] ?? [];
    if (!rows.length) return put(spent, empty("Nothing was spent in the last 30 days."));
    return put(spent, table(`Costs by ${by}`, [
      [by, (each) => (by === "key" ? costs.names[each.name] ?? each.name : each.name) || "none"],
      ["requests", (each) => count(each.requests), "number"], ["tokens", (each) => short(each.prompt + each.completion), "number"],
      ["thinking", (each) => short(each.reasoning), "number"], ["cost", (each) => (each.unpriced === each.attempts ? "–" : micro(each.micro)), "number"],
    ], rows.slice(0, ROWS)));
  }

  function drawRecent() {
    if (!requests.length) return put(recent, empty("No request has ended since the server started. Ask one in the ", h("a", { href: "#playground" }, "playground"), "."));
    return put(recent, table("Requests, the newest first", [
      ["ended", (each) => clock(each.when)], ["model", (each) => each.answered || each.model || "–"],
      ["strategy", (each) => each.strategy || each.effort || "–"], ["status", (each) => h("span", { class: each.ok ? "good" : "bad" }, each.disconnected ? "left" : String(each.status))],
      ["seconds", (each) => seconds(each.seconds), "number"], ["tokens", (each) => count(each.output_tokens), "number"],
      ["thinking", (each) => count(each.reasoning_tokens), "number"], ["cost", (each) => micro(each.micro_dollars), "number"],
      ["trace", (each) => h("a", { href: `#traces/${each.id}`, "aria-label": `Trace of ${each.id}` }, "open")],
    ], requests.slice(-ROWS).reverse()));
  }

  const plan = () => { if (!planned) { planned = true; requestAnimationFrame(draw); } };

  // ---------------------------------------------------------------- what comes

  async function counted() {
    try {
      costs = await get("/api/costs?days=30");
      daily.redraw();
      drawCosts();
    } catch (error) {
      put(spent, trouble(error));
    }
  }

  async function watch(signal) {
    try {
      const response = await ask("/api/live", { signal });
      again = 1000;
      let first = true;
      for await (const { event, data } of events(response)) {
        put(problem);
        live.textContent = "live";
        live.dataset.state = "on";
        const said = JSON.parse(data);
        if (event === "requests") {
          requests = [...(first ? [] : requests), ...said].slice(-MOST);
          if (!first && said.length) counted();
          first = false;
        } else if (event === "state") health.show(state = said);
        plan();
      }
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.status) put(problem, trouble(error));
      if (error.status === 401 || error.status === 403) { live.textContent = "locked"; return; }
    }
    if (signal.aborted) return;
    live.textContent = "connecting";
    live.dataset.state = "off";
    setTimeout(() => { if (!signal.aborted) watch(signal); }, again);
    again = Math.min(again * 2, 15000);
  }

  function leave() {
    watching?.abort();
    watching = null;
  }

  return {
    enter() {
      leave();
      watching = new AbortController();
      draw();
      counted();
      watch(watching.signal);
    },
    leave,
  };
}

/** Places for labels of times, not too many. */
function spread(times, width) {
  if (times.length < 2) return times;
  const low = times[0], high = times[times.length - 1], n = Math.max(2, Math.floor(width / 130));
  return high - low < 1 ? [low] : Array.from({ length: n }, (_, at) => low + ((high - low) * at) / (n - 1));
}
