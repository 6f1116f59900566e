// The playground: one question, asked with one setting or two side by side.

import { h, put, trouble } from "/pages/dom.js";
import { get } from "/pages/wire.js";
import { Run } from "/pages/run.js";

export function open(panel) {
  const runs = [new Run("A"), new Run("B", "vote(8)")];
  const question = h("textarea", {
    id: "question", rows: 3, required: true, placeholder: "What is 17 · 23?", "aria-describedby": "question-about",
  });
  const go = h("button", { type: "submit", class: "primary" }, "Ask");
  const stop = h("button", { type: "button", class: "stop", disabled: true, on: { click: () => runs.forEach((run) => run.stop()) } }, "Stop");
  const both = h("input", { type: "checkbox", id: "both" });
  const problem = h("div");
  const grid = h("div", { class: "runs" }, runs.map((run) => run.element));

  const shown = () => (both.checked ? runs : runs.slice(0, 1));
  function laidOut() {
    grid.classList.toggle("two", both.checked);
    runs[1].element.hidden = !both.checked;
  }
  function settled() {
    const running = runs.some((run) => run.running);
    go.disabled = running;
    stop.disabled = !running;
  }
  both.addEventListener("change", laidOut);
  panel.addEventListener("ended", settled);

  async function submitted(event) {
    event?.preventDefault();
    const text = question.value.trim();
    if (!text || runs.some((run) => run.running)) return question.focus();
    const asked = shown().map((run) => run.ask(text));
    settled();
    await Promise.all(asked);
    return settled();
  }
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submitted(event);
  });
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape") runs.forEach((run) => run.stop());
  });

  put(panel,
    h("h1", { class: "hidden" }, "Playground"),
    h("form", { class: "ask", on: { submit: submitted } },
      h("label", { for: "question" }, "Question"), question,
      h("div", { class: "row" }, go, stop,
        h("span", { class: "check" }, both, h("label", { for: "both" }, "two settings side by side")),
        h("small", { id: "question-about" }, "Ctrl+Enter asks, Escape stops."))),
    problem, grid);
  laidOut();

  return {
    async enter() {
      try {
        const { models, strategies } = await get("/api/models");
        put(problem);
        for (const run of runs) run.offer(models, strategies);
      } catch (error) {
        put(problem, trouble(error));
      }
    },
  };
}
