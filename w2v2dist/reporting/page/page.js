"use strict";
// Draws the panels of the report with uPlot: drag to zoom, double click to see all; cursors and zoom
// of one kind of training move together. Data: see panels.py.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  for (const panel of data.panels) panel.marks = data.marks[panel.group];
  const HEIGHT = 190;
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const plots = new Map(); // number of a panel -> its plot

  const short = (v) => {
    const size = Math.abs(v);
    if (v == null || !Number.isFinite(v)) return "–";
    if (size >= 1e6 || (size > 0 && size < 1e-3)) return v.toExponential(2).replace("e+", "e");
    if (size >= 1e4) return Math.round(v).toLocaleString("en");
    return String(Number(v.toPrecision(4)));
  };
  const tick = (v) => {
    if (v == null) return "";
    const size = Math.abs(v);
    if (size >= 1e6) return `${Number((v / 1e6).toPrecision(4))}M`;
    if (size >= 1e4) return `${Number((v / 1e3).toPrecision(4))}k`;
    return size > 0 && size < 1e-3 ? v.toExponential(0) : String(Number(v.toPrecision(6)));
  };

  // Curves share no steps: where one has no point at the cursor, its nearest one counts
  const nearest = (u, series, at) => {
    const values = u.data[series];
    if (values[at] != null) return at;
    let before = at, after = at;
    while (before >= 0 && values[before] == null) before--;
    while (after < values.length && values[after] == null) after++;
    if (before < 0 || after >= values.length) return before < 0 ? (after < values.length ? after : null) : before;
    const x = u.data[0];
    return x[at] - x[before] <= x[after] - x[at] ? before : after;
  };

  const colour = (panel, curve, place) =>
    style(`c${(panel.compared ? curve.run : place) % 8}`) || "gray";

  function seriesOf(panel) {
    const series = [{}], tables = [];
    panel.curves.forEach((curve, place) => {
      const hasTrend = curve.trend_x.length > 0 && !panel.steps;
      const dash = curve.dashed && panel.compared ? [5, 4] : undefined;
      const common = { stroke: colour(panel, curve, place), spanGaps: true, dash, place };
      const few = curve.x.length <= 60;
      series.push({
        ...common, label: curve.label, width: hasTrend ? 1 : 1.6, alpha: hasTrend ? 0.32 : 1,
        points: { show: few, size: few && curve.x.length <= 12 ? 6 : 4, fill: common.stroke },
        paths: panel.steps ? uPlot.paths.stepped({ align: 1 }) : undefined,
      });
      tables.push([curve.x, curve.y]);
      if (hasTrend) {
        series.push({ ...common, label: `${curve.label} (mean)`, width: 1.8, points: { show: false }, isTrend: true });
        tables.push([curve.trend_x, curve.trend_y]);
      }
    });
    return { series, values: tables.length ? uPlot.join(tables) : [[]] };
  }

  const MARKS = {
    resumed: ["good", [4, 3]], preempted: ["bad", [1, 3]], alarm: ["warn", []],
    rollback: ["warn", []], checkpoint_damaged: ["warn", []], freeze: ["accent", [4, 3]],
  };

  function drawMarks(u, panel) {
    const { ctx, bbox } = u, ratio = devicePixelRatio || 1;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.lineWidth = ratio;
    for (const mark of panel.marks) {
      const [name, dash] = MARKS[mark.kind] || ["muted", [2, 2]];
      const x = Math.round(u.valToPos(mark.step, "x", true)) + 0.5;
      ctx.strokeStyle = ctx.fillStyle = style(name);
      ctx.globalAlpha = 0.75;
      ctx.setLineDash(dash.map((d) => d * ratio));
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      if (mark.kind === "alarm") {
        const s = 5 * ratio;
        ctx.beginPath();
        ctx.moveTo(x - s, bbox.top);
        ctx.lineTo(x + s, bbox.top);
        ctx.lineTo(x, bbox.top + 1.6 * s);
        ctx.fill();
      }
    }
    ctx.globalAlpha = 1;
    ctx.strokeStyle = ctx.fillStyle = style("muted");
    ctx.setLineDash([6 * ratio, 4 * ratio]);
    ctx.font = `${11 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = "right";
    ctx.textBaseline = "alphabetic";
    for (const line of panel.lines) {
      const y = Math.round(u.valToPos(line.y, "y", true)) + 0.5;
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
      ctx.fillText(line.label, bbox.left + bbox.width - 4 * ratio, y > bbox.top + 16 * ratio ? y - 4 * ratio : y + 13 * ratio);
    }
    ctx.restore();
  }

  // The legend says the values under the cursor, or the last ones
  function say(u, panel, legend) {
    const at = u.cursor.idx, over = at != null;
    const parts = legend.querySelectorAll("button");
    let number = 0;
    u.series.forEach((series, i) => {
      if (!i || series.isTrend) return;
      const place = over ? nearest(u, i, at) : nearest(u, i, u.data[0].length - 1);
      const x = u.data[0][place], value = place == null ? null : u.data[i][place];
      let text = short(value);
      if (over && u.series[i + 1]?.isTrend) {
        const mean = nearest(u, i + 1, at);
        text += mean == null ? "" : `, mean ${short(u.data[i + 1][mean])}`;
      }
      const { names, x: own } = panel.curves[series.place];
      if (names) text += ` ${names[own.indexOf(x)] ?? ""}`;
      parts[number++].querySelector("b").textContent = text;
    });
    const where = legend.querySelector(".where");
    where.textContent = over ? `step ${u.data[0][at].toLocaleString("en")} ` : "";
    const close = over ? panel.marks.find((m) => Math.abs(u.valToPos(m.step, "x") - u.cursor.left) < 5) : null;
    legend.querySelector(".happened").textContent = close ? close.text : "";
  }

  function makeLegend(panel, host) {
    const legend = host.querySelector(".legend");
    legend.replaceChildren();
    const where = document.createElement("span");
    where.className = "where";
    legend.append(where);
    panel.curves.forEach((curve, place) => {
      const button = document.createElement("button"), swatch = document.createElement("span");
      swatch.className = curve.dashed && panel.compared ? "swatch dashed" : "swatch";
      swatch.style.borderColor = colour(panel, curve, place);
      button.append(swatch, `${curve.label} `, document.createElement("b"));
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        const shown = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(shown));
        const { u } = plots.get(host);
        u.series.forEach((series, i) => i && series.place === place && u.setSeries(i, { show: shown }));
      });
      legend.append(button);
    });
    const happened = document.createElement("span");
    happened.className = "happened";
    legend.append(happened);
    return legend;
  }

  function range(panel, isLog) {
    return (u, low, high) => {
      if (low == null || high == null) return [isLog ? 0.1 : 0, 1];
      const whole = u.scales.x.min <= u.data[0][0] && u.scales.x.max >= u.data[0].at(-1);
      for (const line of whole ? panel.lines : []) {
        low = Math.min(low, line.y);
        high = Math.max(high, line.y);
      }
      if (isLog) return uPlot.rangeLog(low, high, 10, false);
      return low === high ? uPlot.rangeNum(low, high, 0.1, true) : uPlot.rangeNum(low, high, 0.08, false);
    };
  }

  function draw(host, isLog) {
    const panel = data.panels[Number(host.dataset.panel)];
    const box = host.querySelector(".chart"), old = plots.get(host);
    const kept = old && { min: old.u.scales.x.min, max: old.u.scales.x.max };
    old?.u.destroy();
    const { series, values } = seriesOf(panel);
    if (isLog) for (let i = 1; i < values.length; i++) values[i] = values[i].map((v) => (v > 0 ? v : null));
    const legend = makeLegend(panel, host);
    const axis = {
      stroke: style("muted"), font: "11px system-ui, sans-serif",
      grid: { stroke: style("grid"), width: 1 }, ticks: { stroke: style("grid"), width: 1, size: 4 },
    };
    const options = {
      width: Math.max(120, box.clientWidth), height: HEIGHT, series, legend: { show: false }, padding: [8, 16, 0, 0],
      scales: { x: { time: false }, y: { distr: isLog ? 3 : 1, range: range(panel, isLog) } },
      axes: [
        { ...axis, size: 26, space: 60, values: (u, splits) => splits.map(tick) },
        { ...axis, size: 50, space: 32, values: (u, splits) => splits.map(tick) },
      ],
      cursor: {
        sync: { key: panel.group }, drag: { x: true, y: false, dist: 6 }, points: { size: 6 },
        dataIdx: (u, i, at) => (i ? nearest(u, i, at) : at),
      },
      hooks: {
        draw: [(u) => drawMarks(u, panel)], setCursor: [(u) => say(u, panel, legend)],
        ready: [(u) => say(u, panel, legend)],
      },
    };
    const u = new uPlot(options, values, box);
    plots.set(host, { u, isLog });
    if (kept && old.u.data[0].length) u.setScale("x", kept);
    return panel;
  }

  const hosts = [...document.querySelectorAll("[data-panel]")];
  for (const host of hosts) {
    const panel = draw(host, false);
    if (panel.curves.some((curve) => curve.y.some((v) => v > 0))) {
      const button = document.createElement("button");
      button.className = "log";
      button.textContent = "log";
      button.title = "logarithmic scale";
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        draw(host, on);
      });
      host.querySelector("figcaption").after(button);
    }
  }
  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const { u } = plots.get(target.parentElement);
      if (target.clientWidth && Math.abs(u.width - target.clientWidth) > 1) u.setSize({ width: target.clientWidth, height: HEIGHT });
    }
  });
  for (const host of hosts) resized.observe(host.querySelector(".chart"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const host of hosts) draw(host, plots.get(host).isLog);
  });
  for (const audio of document.querySelectorAll("audio[data-clip]")) audio.src = data.clips[Number(audio.dataset.clip)];
  // For tests: the plots, and when all were drawn
  window.report = { plots: hosts.map((host) => () => plots.get(host).u) };
  requestAnimationFrame(() => setTimeout(() => { document.documentElement.dataset.drawn = String(performance.now()); }));
})();
