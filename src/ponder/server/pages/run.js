// One setting of the playground: what is asked for, and its answer as it comes.

import { h, put, field, select, fresh } from "/pages/dom.js";
import { ask, events, get, Failure } from "/pages/wire.js";
import { Tree } from "/pages/tree.js";
import { curl, python, offer } from "/pages/code.js";
import { count, dollars, seconds, some } from "/pages/format.js";

const OWN = "…";
const BUDGETS = [null];
for (let power = 5; power <= 15; power += 0.5) BUDGETS.push(Math.round(2 ** power / 8) * 8);

let progress = true; // until the server says that it tells none

export class Run {
  constructor(name, strategy = "") {
    this.name = name;
    this.controller = null;
    this.model = select([["", "…"]], "");
    this.strategy = select([["", "as the model has it"]], strategy, { change: () => this.#other() });
    this.wanted = strategy;
    this.own = h("input", { type: "text", spellcheck: "false", autocomplete: "off", placeholder: "vote(16, risk=0.1)" });
    this.ownField = field("Strategy in words", this.own);
    this.ownField.hidden = true;
    this.budget = h("input", { type: "range", min: 0, max: BUDGETS.length - 1, step: 1, value: 0, on: { input: () => this.#told() } });
    this.temperature = h("input", { type: "number", min: 0, max: 2, step: 0.1, placeholder: "model's" });
    this.deadline = h("input", { type: "number", min: 0.1, step: 0.1, placeholder: "none" });
    this.budgetValue = h("output", { class: "value" });
    const budget = field("Budget", this.budget);
    budget.firstChild.append(" ", this.budgetValue);
    this.settings = h("fieldset", { class: "settings" }, h("legend", {}, `Setting ${name}`),
      field("Model", this.model), field("Strategy", this.strategy), this.ownField, budget,
      h("div", { class: "pair" }, field("Temperature", this.temperature), field("Deadline, s", this.deadline)));
    this.output = h("div", { class: "output" });
    this.element = h("article", { class: "run", "aria-label": `Setting ${name}` }, this.settings, this.output);
    this.#told();
    this.#blank();
  }

  get running() { return this.controller !== null; }

  /** What can be chosen from. */
  offer(models, strategies) {
    const kept = this.model.value, chosen = this.strategy.value || this.wanted;
    put(this.model, models.map((each) => h("option", { value: each.id, selected: each.id === kept }, each.id)));
    const known = strategies.map((each) => [each.name, each.name]);
    put(this.strategy, [["", "as the model has it"], ...known, [OWN, "other…"]].map(([value, text]) =>
      h("option", { value, selected: value === chosen, title: strategies.find((each) => each.name === value)?.about }, text)));
  }

  /** The body of the request for a question. */
  body(question) {
    const strategy = this.strategy.value === OWN ? this.own.value.trim() : this.strategy.value;
    const tokens = BUDGETS[this.budget.value], temperature = this.temperature.value, deadline = this.deadline.value;
    const ponder = {
      ...(strategy && { strategy }), ...(tokens && { budget: { tokens } }), ...(deadline && { deadline: Number(deadline) }),
    };
    return {
      model: this.model.value,
      messages: [{ role: "user", content: question }],
      ...(temperature !== "" && { temperature: Number(temperature) }),
      ...(Object.keys(ponder).length && { ponder }),
    };
  }

  stop() { this.controller?.abort(); }

  /** Asks, and shows what comes until it ends. */
  async ask(question) {
    this.#blank();
    this.controller = new AbortController();
    this.began = performance.now();
    this.#state("waiting", "Waiting…");
    this.ticking = setInterval(() => this.#tick(), 100);
    const body = this.body(question);
    try {
      const response = await this.#asked(body, this.controller.signal);
      this.request = response.headers.get("x-request-id");
      for await (const { event, data } of events(response)) {
        if (data === "[DONE]") { this.complete = true; break; }
        const said = JSON.parse(data);
        if (event === "ponder.progress") this.#progress(said); else this.#chunk(said);
      }
      if (!this.complete) throw new Failure("The answer broke off: the connection was closed.");
      this.#state("done", this.finish === "length" ? "Cut: the budget or the deadline was reached." : "Done.");
    } catch (error) {
      if (error.name === "AbortError") this.#state("stopped", "Stopped.");
      else { this.#state("failed", "Failed."); this.problem.textContent = error.message; this.problem.hidden = false; }
    } finally {
      clearInterval(this.ticking);
      this.controller = null;
      this.elapsed = (performance.now() - this.began) / 1000;
      this.#ended(body);
    }
  }

  async #asked(body, signal) {
    const streaming = { ...body, stream: true, stream_options: { include_usage: true } };
    if (progress) {
      try {
        return await ask("/v1/chat/completions", { body: { ...streaming, ponder: { ...body.ponder, progress: true } }, signal });
      } catch (error) {
        if (error.param !== "ponder.progress") throw error;
        progress = false;
      }
    }
    return ask("/v1/chat/completions", { body: streaming, signal });
  }

  // ---------------------------------------------------------------- what comes

  #chunk(said) {
    if (said.error) throw new Failure(said.error.message);
    if (said.usage) this.usage = said.usage;
    for (const choice of said.choices ?? []) {
      const thought = choice.delta?.reasoning_content ?? choice.delta?.reasoning;
      if (thought) { this.pieces += 1; this.#thought(thought); }
      if (choice.delta?.content) { this.pieces += 1; this.#answered(choice.delta.content); }
      if (choice.finish_reason) this.finish = choice.finish_reason;
    }
  }

  #thought(text) {
    if (this.thinking.hidden) {
      this.thinking.hidden = false;
      this.#fold(true);
      this.#state("thinking", "Thinking…");
    }
    const low = this.thoughts.scrollHeight - this.thoughts.scrollTop - this.thoughts.clientHeight < 40;
    this.thoughts.append(text);
    if (low) this.thoughts.scrollTop = this.thoughts.scrollHeight;
  }

  #answered(text) {
    if (this.answer.textContent === "") {
      this.#fold(false);
      this.thoughtFor.textContent = this.thinking.hidden ? "" : `for ${seconds((performance.now() - this.began) / 1000)}`;
      this.#state("answering", "Answering…");
      this.answer.hidden = false;
    }
    this.answer.append(text);
  }

  #progress(event) {
    this.tree.take(event);
    this.samples.hidden = false;
    this.samplesCount.textContent = some(this.tree.size, "sample");
    if (this.state === "waiting") this.#state("thinking", "Thinking…");
  }

  /** Unless the reader has folded or unfolded it. */
  #fold(open) {
    if (this.touched) return;
    this.thinking.open = open;
  }

  async #ended(body) {
    this.tree.end();
    this.#tick();
    this.answer.setAttribute("aria-busy", "false");
    const spent = this.usage?.ponder ?? {};
    const figures = [
      ["Tokens", this.usage ? count(this.usage.completion_tokens) : `≈ ${count(this.pieces)}`],
      ["of them thinking", this.usage ? count(this.usage.completion_tokens_details?.reasoning_tokens) : "–"],
      ["Prompt", this.usage ? count(this.usage.prompt_tokens) : "–"],
      ["Seconds", seconds(this.elapsed)],
      ["Cost", dollars(spent.dollars)],
      ...(spent.samples > 1 ? [["Samples", count(spent.samples)]] : []),
    ];
    put(this.figures, figures.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
    put(this.actions,
      h("button", { type: "button", class: "quiet", on: { click: () => offer("As curl", curl(body)) } }, "Copy as curl"),
      h("button", { type: "button", class: "quiet", on: { click: () => offer("As Python", python(body)) } }, "Copy as Python"),
      this.request && h("a", { href: `#traces/${this.request}` }, "Trace"));
    this.figures.hidden = this.actions.hidden = false;
    this.element.dispatchEvent(new CustomEvent("ended", { bubbles: true }));
    if (this.tree.size === 0 && spent.samples > 1 && this.request) await this.#afterwards(this.request, this.tree);
  }

  /** Where the server told no progress, the tree comes from the trace, once that is written. */
  async #afterwards(request, tree) {
    for (const wait of [50, 200, 600]) {
      await new Promise((done) => setTimeout(done, wait));
      const trace = await get(`/api/traces/${encodeURIComponent(request)}`).catch(() => null);
      if (!trace) continue;
      tree.replay(trace);
      if (tree !== this.tree || !tree.size) return;
      this.samples.hidden = false;
      this.samplesCount.textContent = some(tree.size, "sample");
      return;
    }
  }

  // ---------------------------------------------------------------- what is shown

  #blank() {
    this.tree = new Tree();
    this.usage = this.finish = this.request = null;
    this.pieces = 0;
    this.complete = this.touched = false;
    this.status = h("span", { role: "status", class: "status" });
    this.ticker = h("span", { class: "ticker", "aria-hidden": "true" });
    this.thoughtFor = h("span", { class: "soft" });
    this.thoughts = h("div", { class: "thought", tabindex: 0, role: "region", "aria-label": `Thinking of setting ${this.name}` });
    this.thinking = h("details", { class: "thinking", hidden: true },
      h("summary", { on: { click: () => { this.touched = true; } } }, "Thinking ", this.thoughtFor), this.thoughts);
    this.answer = h("div", {
      class: "answer", role: "log", "aria-live": "polite", "aria-busy": "true", "aria-label": `Answer of setting ${this.name}`, hidden: true,
    });
    this.samplesCount = h("span", { class: "soft" });
    const title = fresh("samples");
    this.samples = h("section", { class: "samples", "aria-labelledby": title, hidden: true },
      h("h3", { id: title }, "Samples ", this.samplesCount), this.tree.list);
    this.problem = h("p", { class: "trouble", role: "alert", hidden: true });
    this.figures = h("dl", { class: "figures", hidden: true });
    this.actions = h("div", { class: "row", hidden: true });
    put(this.output, h("div", { class: "bar" }, this.status, this.ticker),
      this.thinking, this.answer, this.problem, this.samples, this.figures, this.actions);
    this.#state("idle", "");
  }

  #state(state, words) {
    this.state = state;
    this.element.dataset.state = state;
    this.status.textContent = words;
  }

  #tick() {
    const pieces = Math.max(this.pieces, this.tree.pieces);
    const tokens = this.usage ? this.usage.completion_tokens : pieces;
    const passed = this.controller ? (performance.now() - this.began) / 1000 : this.elapsed;
    this.ticker.textContent = `${this.usage ? "" : "≈ "}${some(tokens, "token")} · ${passed.toFixed(1)} s`;
  }

  #told() {
    const tokens = BUDGETS[this.budget.value];
    const words = tokens ? `${count(tokens)} tokens` : "the model's";
    this.budgetValue.textContent = words;
    this.budget.setAttribute("aria-valuetext", words);
  }

  #other() {
    this.wanted = this.strategy.value;
    this.ownField.hidden = this.strategy.value !== OWN;
    if (!this.ownField.hidden) this.own.focus();
  }
}
