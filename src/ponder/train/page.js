"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("data").textContent);
  const nodes = [...document.querySelectorAll(".chart")];
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // A mean over the last tenth of the run's points, so that a trend shows through the noise of single steps.
  function smoothed(values) {
    const width = Math.max(1, Math.round(values.length / 10));
    return values.map((_, at) => {
      const near = values.slice(Math.max(0, at + 1 - width), at + 1);
      return near.reduce((sum, value) => sum + value, 0) / near.length;
    });
  }

  function draw() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue("--" + name).trim();
    for (const node of nodes) {
      const chart = charts[Number(node.dataset.chart)];
      const few = chart.x.length < 30 || chart.name === "rate"; // which has no noise
      const traces = [{
        x: chart.x, y: chart.y, mode: chart.x.length < 2 ? "markers" : "lines", name: chart.name,
        line: { color: few ? colour("accent") : colour("faint"), width: few ? 2 : 1 },
        marker: { color: colour("accent") },
        hovertemplate: "step %{x}<br>%{y:.4g}<extra></extra>",
      }];
      if (!few) {
        traces.push({ x: chart.x, y: smoothed(chart.y), mode: "lines", hoverinfo: "skip", line: { color: colour("accent"), width: 2 } });
      }
      const grid = { gridcolor: colour("line"), zeroline: false, fixedrange: true, tickfont: { color: colour("soft") } };
      Plotly.react(node, traces, {
        xaxis: { ...grid, nticks: 6, tickformat: "~s" }, yaxis: { ...grid, nticks: 5, tickformat: "~g", automargin: true },
        showlegend: false, dragmode: false, hovermode: "closest", margin: { l: 44, r: 8, t: 8, b: 28 },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: style.fontFamily, color: colour("ink"), size: 12 },
        hoverlabel: { bgcolor: colour("card"), bordercolor: colour("strong"), font: { color: colour("ink") }, align: "left" },
      }, { displayModeBar: false, responsive: false });
    }
  }

  dark.addEventListener("change", draw);
  let width = 0;
  new ResizeObserver(() => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    requestAnimationFrame(draw);
  }).observe(document.body);
})();
