// Traces: what was asked, thought and answered, found again and looked at step by step.

import { h, put, empty, trouble, field, select } from "/pages/dom.js";
import { get } from "/pages/wire.js";
import { Tree } from "/pages/tree.js";
import { count, day, dollars, seconds, some } from "/pages/format.js";

const STATES = [["", "all"], ["done", "done"], ["running", "running"], ["interrupted", "interrupted"], ["failed", "failed"]];

export function open(panel) {
  const search = h("input", { type: "search", placeholder: "question, answer or model", on: { input: later } });
  const state = select(STATES, "", { change: list });
  const found = h("ul", { class: "found" }), told = h("p", { class: "hidden", role: "status" });
  const detail = h("article", { class: "detail", tabindex: -1, "aria-label": "Trace" });
  let waiting = 0, newest = 0, chosen = "";

  const split = h("div", { class: "split" },
    h("div", { class: "side" },
      h("search", { class: "pair wide" }, field("Search", search), field("State", state)), told, found),
    detail);
  put(panel, h("h1", { class: "hidden" }, "Traces"), split);

  function later() {
    clearTimeout(waiting);
    waiting = setTimeout(list, 200);
  }

  async function list() {
    const mine = ++newest;
    const query = new URLSearchParams({ search: search.value, state: state.value, limit: 100 });
    try {
      const rows = await get(`/api/traces?${query}`);
      if (mine !== newest) return;
      told.textContent = some(rows.length, "trace");
      put(found, rows.length ? rows.map(item) : h("li", {}, empty(search.value || state.value ? "No trace is like that." : "There are no traces yet.")));
      mark();
    } catch (error) {
      if (mine === newest) put(found, h("li", {}, trouble(error)));
    }
  }

  const item = (row) => h("li", {}, h("a", { href: `#traces/${row.id}`, data: { id: row.id } },
    h("span", { class: "ask-line" }, row.question || "(no question)"),
    h("span", { class: "say-line" }, row.answer || "no answer"),
    h("small", {}, `${day(row.created)} · ${row.model} · ${row.strategy || "default"} · ${some(row.tokens, "token")}`,
      row.state === "done" ? "" : h("b", { class: "bad" }, ` · ${row.state}`))));

  function mark() {
    for (const link of found.querySelectorAll("a")) {
      if (link.dataset.id === chosen) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    }
  }

  async function show(id) {
    chosen = id;
    split.classList.toggle("chosen", Boolean(id));
    mark();
    if (!id) return put(detail, empty("Choose a trace to see its steps."));
    try {
      const trace = await get(`/api/traces/${encodeURIComponent(id)}`);
      if (chosen !== id) return undefined;
      drawn(detail, trace);
    } catch (error) {
      if (chosen === id) put(detail, trouble(error));
    }
    return undefined;
  }

  return { async enter(id) { await Promise.all([list(), show(id)]); } };
}

function drawn(detail, trace) {
  const cost = trace.cost, tree = new Tree();
  tree.replay(trace);
  const tokens = cost.thinking + cost.answer + cost.verifier + cost.probe + cost.cancelled + cost.written;
  const figures = [
    ["Tokens", count(tokens)], ["thinking", count(cost.thinking)], ["answer", count(cost.answer)], ["verifier", count(cost.verifier)],
    ["given up", count(cost.cancelled)], ["prompt", count(cost.prompt_computed + cost.prompt_cached)], ["Seconds", seconds(cost.seconds)], ["Cost", dollars(cost.dollars)],
  ];
  const from = trace.provenance;
  put(detail,
    h("a", { class: "back", href: "#traces" }, "← all traces"),
    h("p", { class: "eyebrow" }, `${day(trace.created)} · ${from.model} · ${from.strategy || "default"}`, from.prompt_version ? ` · ${from.prompt_version}` : ""),
    h("h2", {}, "Question"),
    trace.question.messages.map((message) => h("div", { class: `message ${message.role}` }, h("small", {}, message.role),
      h("div", { class: "words" }, message.parts.map(partText).join("\n")))),
    h("h2", {}, "Answer ", trace.state === "done" ? null : h("small", { class: "bad" }, trace.state)),
    trace.error ? h("p", { class: "trouble" }, trace.error) : null,
    h("div", { class: "answer" }, trace.answer || "There is none."),
    h("dl", { class: "figures" }, figures.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    tree.size ? [h("h2", {}, "Samples"), tree.list] : null,
    trace.events.length ? [h("h2", {}, "Steps ", h("small", {}, count(trace.events.length))), h("ol", { class: "steps" }, trace.events.map(step))] : null,
    h("p", { class: "soft" }, h("code", {}, trace.id)));
  detail.focus({ preventScroll: true });
}

const partText = (part) => part.text ?? part.content ?? (part.type === "tool_call" ? `${part.name}(${part.arguments})` : `[${part.type}]`);

/** An event in the order in which it came. */
function step(event) {
  const number = typeof event.sample === "object" ? event.sample?.index : event.sample;
  const tag = number === undefined ? null : h("span", { class: "tag" }, `#${number + 1}`);
  const line = (kind, ...words) => h("li", { class: event.type }, h("div", { class: "step" }, tag, h("b", {}, kind), ...words));
  const folded = (kind, text) => h("li", { class: event.type }, h("details", {},
    h("summary", { class: "step" }, tag, h("b", {}, kind), h("span", { class: "said" }, text.trim().replace(/\s+/g, " "))), h("div", { class: "thought" }, text)));
  switch (event.type) {
    case "thinking_delta": return folded("thinks", event.text);
    case "answer_delta": return folded("answers", event.text);
    case "tool_called": return folded("calls", `${event.call.name}(${event.call.arguments})`);
    case "tool_returned": return folded(event.result.error ? "a tool failed" : "a tool gave", event.result.content);
    case "sample_finished": return line("ends", h("span", { class: "soft" }, `${event.sample.finish} · ${some(event.cost.thinking + event.cost.answer + event.cost.cancelled + event.cost.probe + event.cost.written, "token")} · ${seconds(event.cost.seconds)}`));
    case "scored": return line("is scored", h("span", { class: "score", vars: { share: Math.max(0, Math.min(1, event.score.value)) } }, event.score.value.toFixed(2)), h("span", { class: "soft" }, event.score.verifier, event.score.why ? `: ${event.score.why}` : ""));
    case "best_answer": return line("is the best so far", h("span", { class: "said" }, event.answer));
    default: return line(event.type);
  }
}
