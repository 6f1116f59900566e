// Upstreams and alarms of drift: what the server leans on, and what has become different.

import { h, put, empty, trouble, table } from "/pages/dom.js";
import { ask } from "/pages/wire.js";
import { day } from "/pages/format.js";

const SAYS = { closed: "well", "half-open": "being tried", open: "left alone" };
const since = (when) => (when ? day(when * 1000) : "–");

/** Two sections, and `show` for a new state of the server. */
export function condition() {
  const upstreams = h("div"), alarms = h("div"), problem = h("div");
  let shown = "";

  async function restart(alarm, button) {
    button.disabled = true;
    try {
      const response = await ask("/api/drift/restart", { body: { model: alarm.model, prompt: alarm.prompt } });
      put(problem);
      show(await response.json());
    } catch (error) {
      button.disabled = false;
      put(problem, trouble(error));
    }
  }

  function ending(alarm) {
    const name = `${alarm.model}${alarm.prompt ? `, ${alarm.prompt}` : ""}`;
    const button = h("button", { type: "button", "aria-label": `Take what is now as the reference of ${name}` }, "Restart");
    button.addEventListener("click", () => restart(alarm, button));
    return button;
  }

  function show(state) {
    const said = JSON.stringify([state.upstreams, state.alarms]);
    if (said === shown) return; // a button keeps its focus
    shown = said;
    put(upstreams, state.upstreams?.length ? table("Upstreams", [
      ["upstream", (each) => each.name],
      ["state", (each) => h("span", { class: each.state === "closed" ? "good" : "bad" }, SAYS[each.state] ?? each.state)],
      ["since", (each) => since(each.since)], ["last error", (each) => each.error || "none"],
    ], state.upstreams) : empty("This server asks no other servers."));
    put(alarms, state.alarms?.length ? table("Alarms of drift", [
      ["model", (each) => each.model], ["prompt", (each) => each.prompt || "–"],
      ["what", (each) => h("span", { class: "bad", title: each.text }, `${each.signal} ${each.direction}`)],
      ["expected", (each) => each.expected || "–"], ["seen", (each) => each.seen || each.text], ["since", (each) => since(each.since)],
      ["reference", ending],
    ], state.alarms) : empty("No alarm stands: answers are as long, as dear and as often refused as they were."));
  }

  const elements = [
    h("section", { id: "upstreams" }, h("h2", {}, "Upstreams"), upstreams),
    h("section", { id: "drift" }, h("h2", {}, "Drift"), problem, alarms),
  ];
  return { elements, show };
}
