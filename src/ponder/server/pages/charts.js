// Charts as SVG in a few lines: points, lines, bars and intervals on a linear or a logarithmic axis.

import { h, svg } from "/pages/dom.js";
import { digits, short } from "/pages/format.js";

const EDGE = { left: 52, right: 24, top: 12 };

/** Round values from low to high: of each decade 1, 2 and 5 on a logarithmic axis. */
export function ticks(low, high, most, log = false) {
  if (log) {
    const steps = [1, 2, 5], found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const step of steps) {
        const value = Number(`${step}e${power}`);
        if (value >= low && value <= high) found.push({ value, main: step === 1 });
      }
    }
    const kept = found.length > most ? found.filter((each) => each.main) : found;
    return kept.map((each) => each.value);
  }
  const rough = (high - low) / Math.max(1, most) || 1;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((each) => each * size >= rough) * size;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

function scale({ low, high, log }, from, to) {
  const place = log ? Math.log10 : (value) => value;
  const [first, last] = [place(low), place(high)];
  return (value) => from + ((place(value) - first) / (last - first || 1)) * (to - from);
}

function bounds(values, { log, zero, low, high } = {}) {
  const known = values.filter(Number.isFinite);
  let first = known.length ? Math.min(...known) : 0, last = known.length ? Math.max(...known) : 1;
  if (log) return { low: (first > 0 ? first : 1) / 1.25, high: (last > 0 ? last : 10) * 1.25, log };
  if (zero) first = Math.min(0, first);
  if (first === last) last = first + 1;
  const room = zero || low !== undefined ? 0.06 : 0.04;
  return { low: low ?? first, high: high ?? last + (last - first) * room, log };
}

/**
 * An SVG of series {name, kind: "line" | "dots" | "bars", colour: 0…, dashed, points: {x, y, low, high, from, title, mark}}.
 * x, y: {log, zero, low, high, format, title, ticks}. rule: {y, title}, a line across.
 */
export function chart({ width, height, series, x = {}, y = {}, rule, label }) {
  const bottom = 26 + (x.title ? 20 : 0);
  const points = series.flatMap((each) => each.points);
  const across = bounds(points.map((each) => each.x), x);
  const up = bounds([...points.flatMap((each) => [each.y, each.low ?? each.y, each.high ?? each.y]), ...(rule ? [rule.y] : [])], y);
  const bars = series.some((each) => each.kind === "bars");
  const wide = bars ? Math.max(2, Math.min(26, ((width - EDGE.left - EDGE.right) / Math.max(1, new Set(points.map((each) => each.x)).size)) * 0.7)) : 0;
  const px = scale(across, EDGE.left + wide / 2 + 4, width - EDGE.right - wide / 2 - 4);
  const py = scale(up, height - bottom, EDGE.top);
  const floor = py(Math.max(up.low, 0));
  const drawing = svg("svg", { class: "chart", role: "img", "aria-label": label, width, height, viewBox: `0 0 ${width} ${height}` });

  for (const value of ticks(up.low, up.high, height / 55)) {
    drawing.append(svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: py(value), y2: py(value) }),
      svg("text", { class: "tick", x: EDGE.left - 8, y: py(value) + 4, "text-anchor": "end" }, (y.format ?? short)(value)));
  }
  for (const value of x.ticks ?? ticks(across.low, across.high, width / 80, across.log)) {
    drawing.append(svg("text", { class: "tick", x: px(value), y: height - bottom + 18, "text-anchor": "middle" }, (x.format ?? digits)(value)));
  }
  if (x.title) drawing.append(svg("text", { class: "tick", x: (EDGE.left + width - EDGE.right) / 2, y: height - 4, "text-anchor": "middle" }, x.title));
  if (rule) {
    drawing.append(svg("line", { class: "rule", x1: EDGE.left, x2: width - EDGE.right, y1: py(rule.y), y2: py(rule.y) }),
      svg("text", { class: "tick", x: width - EDGE.right, y: py(rule.y) - 5, "text-anchor": "end" }, rule.title));
  }
  for (const each of series) {
    const group = svg("g", { class: `series c${each.colour ?? 0}${each.dashed ? " dashed" : ""}` });
    if (each.kind === "bars") {
      for (const point of each.points) {
        const from = point.from === undefined ? floor : py(point.from);
        group.append(svg("rect", { x: px(point.x) - wide / 2, width: wide, y: py(point.y), height: Math.max(0, from - py(point.y)), rx: Math.min(2, wide / 4) },
          svg("title", {}, point.title ?? short(point.y))));
      }
    } else {
      if (each.kind === "line" && each.points.length > 1) {
        group.append(svg("polyline", { points: each.points.map((point) => `${px(point.x)},${py(point.y)}`).join(" ") }));
      }
      for (const point of each.points) {
        if (point.low !== undefined) group.append(svg("line", { class: "interval", x1: px(point.x), x2: px(point.x), y1: py(point.low), y2: py(point.high) }));
        group.append(svg("circle", { class: point.mark ?? "", cx: px(point.x), cy: py(point.y), r: each.kind === "dots" ? 3 : 4 }, svg("title", {}, point.title ?? "")));
      }
    }
    drawing.append(group);
  }
  return drawing;
}

/** A figure that is drawn again when its width changes. `draw(width)` gives an SVG. */
export function figure(title, draw) {
  const place = h("div", { class: "plot" });
  const legend = h("div", { class: "legend" });
  const element = h("figure", {}, h("figcaption", {}, title, legend), place);
  const redraw = () => { if (place.clientWidth) place.replaceChildren(draw(place.clientWidth)); };
  new ResizeObserver(redraw).observe(place);
  return { element, legend, redraw };
}

/** What a colour stands for. */
export const key = (colour, name) => h("span", {}, h("i", { class: `dot c${colour}` }), name);
