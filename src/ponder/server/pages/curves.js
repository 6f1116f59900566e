// Curves: what thinking bought, accuracy against compute, out of stored studies and runs.

import { h, put, empty, trouble, field, select, table } from "/pages/dom.js";
import { get } from "/pages/wire.js";
import { chart, figure } from "/pages/charts.js";
import { count, dollars, percent, seconds, short, some } from "/pages/format.js";

const AXES = {
  tokens: ["tokens a question", short], seconds: ["seconds a question", seconds],
  flops: ["FLOPs a question", short], dollars: ["dollars a question", dollars],
};

export function open(panel) {
  let study = null, hidden = new Set(), wanted = "";
  const choice = select([], "", { change: () => { location.hash = `curves/${encodeURIComponent(choice.value)}`; } });
  const axis = select([], "tokens", { change: draw });
  const plot = figure("Accuracy", drawn);
  const points = h("div"), told = h("div"), body = h("div", { hidden: true });
  put(body, told, plot.element, h("section", {}, h("h2", {}, "Measurements"), points));
  put(panel, h("h1", { class: "hidden" }, "Curves"), h("div", { class: "pair wide controls" }, field("Study", choice), field("Against", axis)), body);
  const none = h("div");
  panel.append(none);

  function draw() {
    plot.redraw();
    put(plot.legend, study.series.map((each, at) => h("button", {
      type: "button", class: "toggle", "aria-pressed": !hidden.has(at),
      on: { click: () => { if (!hidden.delete(at)) hidden.add(at); draw(); plot.legend.children[at].focus(); } },
    }, h("i", { class: `dot c${at % 8}${each.bound ? " hollow" : ""}` }), each.name)));
  }

  function drawn(width) {
    if (!study) return chart({ width, height: 10, series: [], label: "" });
    const name = axis.value, [title, format] = AXES[name];
    const series = study.series.map((each, at) => ({
      name: each.name, kind: "line", colour: at % 8, dashed: each.bound,
      points: hidden.has(at) ? [] : each.points.filter((point) => point[name] > 0).map((point) => ({
        x: point[name], y: point.accuracy, low: point.low, high: point.high, mark: point.frontier ? "frontier" : "",
        title: `${point.label}: ${percent(point.accuracy)} (${percent(point.low)} to ${percent(point.high)}), ${format(point[name])}`,
      })).sort((a, b) => a.x - b.x),
    }));
    const tops = study.series.flatMap((each) => each.points.map((point) => point.high));
    return chart({
      width, height: Math.max(280, Math.min(460, width * 0.5)), series, x: { log: true, format, title },
      y: { low: 0, high: Math.min(1, 1.06 * Math.max(study.floor ?? 0, ...tops)), format: (value) => `${Math.round(value * 100)}%` },
      rule: study.floor ? { y: study.floor, title: "best constant answer" } : null,
      label: `Accuracy of ${some(series.length, "series", "series")} on ${study.task} against ${title}`,
    });
  }

  async function show(id) {
    study = null;
    try {
      const got = await get(`/api/study?id=${encodeURIComponent(id)}`);
      if (wanted !== id) return;
      study = got;
    } catch (error) {
      body.hidden = true;
      put(none, trouble(error));
      return;
    }
    hidden = new Set();
    const every = study.series.flatMap((each) => each.points);
    const axes = Object.keys(AXES).filter((name) => every.some((point) => point[name] > 0));
    const kept = axes.includes(axis.value) ? axis.value : axes[0];
    put(axis, axes.map((name) => h("option", { value: name, selected: name === kept }, AXES[name][0])));
    put(none);
    body.hidden = false;
    put(told, h("h2", {}, `${study.task} · ${study.model}`), h("p", { class: "soft" }, some(study.questions, "question"), study.made?.date ? ` · ${study.made.date}` : "", study.made?.hardware ? ` · ${study.made.hardware}` : ""),
      study.notes.map((note) => h("p", { class: "soft" }, note)));
    draw();
    put(points, table("Measurements", [
      ["setting", (row) => [row.label, row.frontier ? h("b", { class: "star", title: "no other setting beats it" }, " ★") : null]],
      ["accuracy", (row) => percent(row.accuracy), "number"], ["interval", (row) => `${percent(row.low)} to ${percent(row.high)}`, "number"],
      ["tokens", (row) => count(row.tokens), "number"], ["seconds", (row) => seconds(row.seconds), "number"],
      ["cost", (row) => dollars(row.dollars), "number"],
    ], every));
  }

  return {
    async enter(id) {
      let known;
      try {
        known = await get("/api/studies");
      } catch (error) {
        body.hidden = true;
        return put(none, trouble(error));
      }
      if (!known.length) {
        body.hidden = true;
        return put(none, empty("There are no studies yet. Make one with: ponder curve, and put its folder into studies in ponder's home."));
      }
      wanted = known.some((each) => each.id === id) ? id : known[0].id;
      put(choice, known.map((each) => h("option", { value: each.id, selected: each.id === wanted }, each.title)));
      return show(wanted);
    },
  };
}
