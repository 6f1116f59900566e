"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const node = document.getElementById("curve");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const hidden = new Set();
  const units = { tokens: "tokens a question", seconds: "seconds a question", flops: "FLOPs a question", dollars: "dollars a question" };
  let axis = document.querySelector("input[name=axis]:checked")?.value ?? "tokens";

  const percent = (share) => (100 * share).toFixed(1) + "%";
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const digits = (value) => Number(value.toPrecision(3)).toLocaleString("en-US", { maximumSignificantDigits: 3 });

  function shown(value) {
    if (axis === "dollars") return "$" + value.toFixed(Math.max(2, 1 - Math.floor(Math.log10(value * 1.0001)))).replace(/(\.\d\d.*?)0+$/, "$1");
    if (axis === "seconds") return digits(value) + " s";
    if (axis === "tokens") return digits(value);
    const sizes = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]];
    const [size, name] = sizes.find(([each]) => value >= each) ?? [1, ""];
    return digits(value / size) + " " + name;
  }

  // Each decade's 1, 2 and 5; on a long axis or a narrow page only its 1.
  function ticks(low, high) {
    const decades = Math.log10(high / low);
    const steps = decades * 3 * 56 > node.clientWidth ? (decades * 2 * 56 > node.clientWidth ? [1] : [1, 3]) : [1, 2, 5];
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const step of steps) {
        const value = Number((step + "e" + power));
        if (value >= low && value <= high) found.push(value);
      }
    }
    return found;
  }

  function draw() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue("--" + name).trim();
    const visible = data.series.filter((_, index) => !hidden.has(index));
    const points = (visible.length ? visible : data.series).flatMap((series) => series.points);
    const costs = points.map((point) => point[axis]);
    const low = Math.min(...costs) / 1.25, high = Math.max(...costs) * 1.25;
    const front = data.frontier[axis].filter(([series]) => !hidden.has(series)).map(([s, p]) => data.series[s].points[p]);
    const traces = [{
      x: front.map((point) => point[axis]), y: front.map((point) => point.accuracy), mode: "lines", hoverinfo: "skip",
      line: { color: colour("band"), width: 13, shape: "linear" }, name: "frontier",
    }];
    data.series.forEach((series, index) => {
      const line = dark.matches ? series.dark : series.light;
      traces.push({
        x: series.points.map((point) => point[axis]),
        y: series.points.map((point) => point.accuracy),
        error_y: {
          type: "data", symmetric: false, color: line, thickness: 1, width: 3,
          array: series.points.map((point) => point.high - point.accuracy),
          arrayminus: series.points.map((point) => point.accuracy - point.low),
        },
        mode: "lines+markers", name: series.name, visible: !hidden.has(index),
        line: { color: line, width: series.bound ? 1.5 : 2, dash: series.bound ? "dash" : "solid" },
        marker: { symbol: series.marker, size: 8, color: line, line: { color: line, width: series.bound ? 2 : 0 } },
        text: series.points.map((point) =>
          "<b>" + plain(point.label) + "</b><br>" + percent(point.accuracy) + " (" + percent(point.low) + " to " +
          percent(point.high) + ")<br>" + plain(shown(point[axis])) + (axis === "tokens" ? " tokens" : "")),
        hovertemplate: "%{text}<extra></extra>",
      });
    });
    const at = ticks(low, high);
    const grid = { gridcolor: colour("line"), zeroline: false, fixedrange: true, tickfont: { color: colour("soft") } };
    Plotly.react(node, traces, {
      xaxis: {
        ...grid, type: "log", range: [Math.log10(low), Math.log10(high)], tickvals: at, ticktext: at.map(shown),
        title: { text: units[axis], standoff: 12, font: { color: colour("soft"), size: 13 } },
      },
      yaxis: {
        ...grid, range: [0, Math.min(1.02, 1.06 * Math.max(data.floor, ...points.map((point) => point.high)))],
        tickformat: ".0%",
      },
      shapes: [{
        type: "line", xref: "paper", x0: 0, x1: 1, y0: data.floor, y1: data.floor, layer: "below",
        line: { color: colour("soft"), width: 1.2, dash: "dot" },
      }],
      showlegend: false, dragmode: false, hovermode: "closest", margin: { l: 48, r: 8, t: 14, b: 52 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: style.fontFamily, color: colour("ink"), size: 12 },
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("strong"), font: { color: colour("ink") }, align: "left" },
    }, { displayModeBar: false, responsive: false });
  }

  for (const input of document.querySelectorAll("input[name=axis]")) {
    input.addEventListener("change", () => { axis = input.value; draw(); });
  }
  for (const button of document.querySelectorAll("#legend button")) {
    button.addEventListener("click", () => {
      const index = Number(button.dataset.series);
      const off = !hidden.delete(index);
      if (off) hidden.add(index);
      button.setAttribute("aria-pressed", String(!off));
      draw();
    });
  }
  dark.addEventListener("change", draw);
  let width = 0;
  new ResizeObserver(() => {
    if (node.clientWidth === width) return;
    width = node.clientWidth;
    requestAnimationFrame(draw);
  }).observe(node);

  const body = document.querySelector("#points tbody");
  const heads = [...document.querySelectorAll("#points thead th")];
  heads.forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      const value = (row) => Number(row.cells[column].dataset.value);
      for (const each of heads) if (each.hasAttribute("aria-sort")) each.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * (value(a) - value(b))));
    });
  });
})();
