// The tree of samples behind an answer, from ponder's events: while they come, or out of a trace.

import { h } from "/pages/dom.js";
import { count } from "/pages/format.js";

const line = (text) => text.trim().replace(/\s+/g, " ");

export class Tree {
  constructor() {
    this.list = h("ul", { class: "tree" });
    this.nodes = new Map();
    this.pieces = 0;
    this.chosen = null;
  }

  get size() { return this.nodes.size; }

  /** Takes in an event of ponder. */
  take(event) {
    switch (event.type) {
      case "thinking_delta": return this.#said(event.sample, "thinking", event.text);
      case "answer_delta": return this.#said(event.sample, "answer", event.text);
      case "sample_finished": return this.#finished(event.sample, event.cost);
      case "scored": return this.#scored(event.sample, event.score);
      case "best_answer": return this.#best(event.sample);
      default: return undefined;
    }
  }

  /** Takes in a whole trace. */
  replay(trace) {
    for (const event of trace.events) this.take(event);
    for (const sample of trace.samples) if (!this.nodes.get(sample.index)?.over) this.#finished(sample, {});
    this.end();
  }

  /** Nothing more comes: what still seems to run does not. */
  end() {
    for (const node of this.nodes.values()) if (!node.over) this.#state(node, "cut");
  }

  #node(index) {
    const known = this.nodes.get(index);
    if (known) return known;
    const node = {
      index, over: false,
      tag: h("span", { class: "tag" }, `#${index + 1}`), summary: h("span", { class: "said" }, "thinking…"),
      marks: h("span", { class: "marks" }), tokens: h("span", { class: "soft" }),
      thinking: h("div", { class: "thought" }), answer: h("div", { class: "words" }), notes: h("div", { class: "notes" }),
      below: h("ul"),
    };
    node.line = h("summary", {}, node.tag, node.summary, node.marks, node.tokens);
    node.item = h("li", { data: { state: "running", sample: index } },
      h("details", {}, node.line, node.thinking, node.answer, node.notes), node.below);
    this.nodes.set(index, node);
    this.#place(this.list, node);
    return node;
  }

  /** Among its siblings, by number. */
  #place(list, node) {
    const after = [...list.children].find((each) => Number(each.dataset.sample) > node.index);
    list.insertBefore(node.item, after ?? null);
  }

  #said(index, where, text) {
    const node = this.#node(index);
    this.pieces += 1;
    node[where].append(text);
    if (where === "answer") node.summary.textContent = line(node.answer.textContent);
  }

  #finished(sample, cost) {
    const node = this.#node(sample.index);
    node.thinking.textContent = sample.thinking;
    node.answer.textContent = sample.answer;
    const words = line(sample.answer);
    node.summary.textContent = words || (sample.finish === "cancelled" ? "given up" : "no answer");
    node.summary.classList.toggle("soft", !words);
    const tokens = (cost.thinking ?? 0) + (cost.answer ?? 0) + (cost.cancelled ?? 0) + (cost.probe ?? 0) + (cost.written ?? 0);
    const own = tokens || sample.tokens || sample.ids?.length;
    node.tokens.textContent = own ? `${count(own)} tokens` : "";
    this.#state(node, { stop: "done", cancelled: "given-up" }[sample.finish] ?? "cut");
    const parent = sample.parent === null || sample.parent === undefined ? null : this.nodes.get(sample.parent);
    if (parent && parent !== node && !node.item.contains(parent.item)) {
      this.#place(parent.below, node);
      node.tag.title = `goes on from sample ${sample.parent + 1} after ${count(sample.fork)} tokens`;
    }
  }

  #scored(index, score) {
    const node = this.#node(index);
    const share = Math.max(0, Math.min(1, score.value));
    node.marks.replaceChildren(
      h("span", { class: "score", vars: { share }, title: `${score.verifier}: ${score.value}` },
        h("span", { class: "hidden" }, "score "), score.value.toFixed(2)));
    const steps = score.steps.length > 1 ? ` (steps ${score.steps.map((each) => each.toFixed(2)).join(", ")})` : "";
    node.notes.replaceChildren(h("p", {}, `${score.verifier} ${score.value.toFixed(3)}${steps}`, score.why ? `: ${score.why}` : ""));
  }

  #best(index) {
    if (this.chosen) this.chosen.item.classList.remove("best");
    this.chosen = this.#node(index);
    this.chosen.item.classList.add("best");
  }

  #state(node, state) {
    node.over = state !== "running";
    node.item.dataset.state = state;
    if (state === "cut" && node.summary.textContent === "thinking…") node.summary.textContent = "cut";
  }
}
