"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = id => document.getElementById(id);
  const all = selector => [...document.querySelectorAll(selector)];
  const element = (tag, text = "", className = "") => {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = className;
    return made;
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const DASHES = [[], [8, 4], [10, 4, 3, 4], [2, 4]];
  // Hidden items, as indices into data.losses, rates, betas, rewards and runs.
  const hidden = {loss: new Set(), rate: new Set(), beta: new Set(), reward: new Set(), run: new Set()};
  let charts = [];

  // Colours were chosen for a white background; on a dark page they are mixed with white.
  const onPage = color => dark.matches ? mixed(color, 0.35) : color;
  const mixed = (color, part) => "#" + [1, 3, 5].map(at => {
    const value = parseInt(color.slice(at, at + 2), 16);
    return Math.round(value + (255 - value) * part).toString(16).padStart(2, "0");
  }).join("");

  const shown = value => {
    if (value === null || value === undefined) return "-";
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.001 || size >= 1e5)) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  };
  const percent = value => (100 * value).toFixed(1) + " %";
  const interval = ([value, low, high]) => `${percent(value)} (${(100 * low).toFixed(1)}-${(100 * high).toFixed(1)})`;

  // ---- one chart

  /* series: {label, color, dash, width, points, values, low, high}; tip(index) -> lines [{color, label, text}]
     or null for the curves' own; title(index) -> the tip's heading; hooks: extra uPlot hooks. */
  function chart(parent, {caption, x, xLabel, xRange, series, height, xValues, xSplits, sync, tip, title, zero, yRange, over}) {
    const figure = element("figure");
    figure.append(element("figcaption", caption));
    parent.append(figure);
    const columns = [x], lines = [{}], bands = [];
    for (const one of series) {
      lines.push({
        label: one.label, stroke: onPage(one.color), width: one.width ?? 2, dash: one.dash ?? [], spanGaps: one.span ?? false,
        points: {show: one.points ?? false, size: 7, fill: onPage(one.color)}, paths: one.scattered ? () => null : undefined,
      });
      columns.push(one.values);
      if (one.low) {
        for (const values of [one.high, one.low]) {
          lines.push({stroke: "transparent", width: 0, points: {show: false}});
          columns.push(values);
        }
        bands.push({series: [columns.length - 2, columns.length - 1], fill: onPage(one.color) + "2e"});
      }
    }
    const axis = {stroke: css("--quiet"), grid: {stroke: css("--grid"), width: 1}, ticks: {stroke: css("--line"), width: 1}};
    const plot = new uPlot({
      width: Math.max(figure.clientWidth, 200), height,
      legend: {show: false}, bands, series: lines,
      scales: {x: {time: false, range: xRange}, y: {range: yRange}},
      axes: [
        {...axis, values: xValues, splits: xSplits, label: xLabel, labelSize: 18, labelFont: "12px system-ui, sans-serif", size: 32},
        {...axis, values: (_, splits) => splits.map(shown), size: (_, values) =>
          18 + 7 * Math.max(3, ...(values ?? []).map(value => String(value).length))},
      ],
      cursor: {sync: sync ? {key: sync} : undefined, y: false, points: {size: 6}},
      hooks: {
        drawAxes: zero ? [u => level(u, 0, css("--quiet"), [])] : [],
        draw: over ? [over] : [],
        setCursor: [u => showTip(u, figure, {series, tip, title})],
      },
    }, columns, figure);
    followFinger(plot);
    const watch = new ResizeObserver(() => {
      const width = figure.clientWidth;
      if (width > 0 && width !== plot.width) plot.setSize({width, height});
    });
    watch.observe(figure);
    charts.push({plot, watch});
  }

  function level(u, value, color, dash) {
    const at = u.valToPos(value, "y", true);
    if (!(at >= u.bbox.top && at <= u.bbox.top + u.bbox.height)) return;
    const pen = u.ctx;
    pen.save();
    pen.strokeStyle = color;
    pen.lineWidth = devicePixelRatio;
    pen.setLineDash(dash.map(length => length * devicePixelRatio));
    pen.beginPath();
    pen.moveTo(u.bbox.left, at);
    pen.lineTo(u.bbox.left + u.bbox.width, at);
    pen.stroke();
    pen.restore();
  }

  // uPlot handles only the mouse; here a finger also moves the cursor, while vertical moves scroll the page.
  function followFinger(u) {
    u.over.addEventListener("pointermove", event => {
      if (event.pointerType !== "touch") return;
      const box = u.over.getBoundingClientRect();
      u.setCursor({left: event.clientX - box.left, top: event.clientY - box.top});
    });
    u.over.addEventListener("pointerenter", () => { pointed = u; });
    u.over.addEventListener("pointerleave", event => {
      if (event.pointerType !== "touch") { pointed = null; hideTips(); }
    });
  }

  let pointed = null;
  const hideTips = () => all(".tip").forEach(tip => tip.remove());

  function showTip(u, figure, {series, tip, title}) {
    const index = u.cursor.idx;
    if (u !== pointed) return;
    hideTips();
    if (index === null || index === undefined || u.cursor.left < 0) return;
    const lines = tip ? tip(index) : series.filter(one => typeof one.values[index] === "number")
      .sort((left, right) => right.values[index] - left.values[index])
      .map(one => ({color: one.color, label: one.label, text: shown(one.values[index])
        + (one.low ? ` (${shown(one.low[index])} to ${shown(one.high[index])})` : "")}));
    if (!lines.length) return;
    const box = element("div", "", "tip");
    if (title) box.append(element("strong", title(index)));
    for (const line of lines.slice(0, 14)) box.append(tipLine(line));
    figure.append(box);
    const left = u.over.offsetLeft + u.cursor.left;
    const room = figure.clientWidth - box.offsetWidth;
    box.style.left = Math.max(Math.min(left > figure.clientWidth / 2 ? left - box.offsetWidth - 14 : left + 14, room), Math.min(0, room)) + "px";
    box.style.top = u.over.getBoundingClientRect().top - figure.getBoundingClientRect().top + 8 + "px";
  }

  function tipLine({color, label, text}) {
    const line = element("div");
    if (color) {
      const mark = element("span", "", "mark");
      mark.style.background = onPage(color);
      line.append(mark);
    }
    line.append(element("span", label), element("b", text));
    return line;
  }

  // ---- the charts

  const panel = name => document.querySelector(`[data-panels=${name}]`);
  const isShown = setting => !hidden.loss.has(setting.loss) && !hidden.rate.has(setting.rate)
    && !hidden.beta.has(setting.beta) && setting.runs.some(run => !hidden.run.has(run));
  const stepTitle = index => {
    const {x, width} = data.steps;
    return width === 1 ? `step ${x[index]}` : `steps ${x[index] - (width - 1) / 2} to ${x[index] + (width - 1) / 2}`;
  };

  // Recorded at few of the run's steps: a line without points would be hard to see.
  function isSparse(values) {
    const recorded = values.filter(value => value !== null).length;
    return recorded < 3 || recorded < values.findLastIndex(value => value !== null) / 2;
  }

  // A setting's curves: its mean with a band, or each seed.
  function linesOf(setting, metric, label, style) {
    const styled = (label, values, more) => ({label, values, span: isSparse(values), points: isSparse(values), ...style, ...more});
    const nothing = data.steps.x.map(() => null);
    if (setting.curves && byId("seeds").value === "mean") {
      const [mean, low, high] = setting.curves[metric] ?? [nothing, nothing, nothing];
      return [styled(label, mean, {low, high})];
    }
    return setting.runs.filter(run => !hidden.run.has(run)).map(run => {
      const {name, curves} = data.runs[run];
      const seed = setting.runs.length > 1 ? name.replace(setting.name, "").replace(/^, /, " ") : "";
      return styled(label + seed, curves[metric] ?? nothing, {width: setting.runs.length > 1 ? 1.3 : 2});
    });
  }

  function curvePanels() {
    const settings = data.settings.filter(isShown);
    if (byId("view").value === "settings") {
      return settings.map(setting => ({
        caption: setting.name,
        series: data.rewards.filter((_, place) => !hidden.reward.has(place))
          .flatMap((reward, place) => linesOf(setting, reward.name, reward.name.replace("rewards/", ""), {color: reward.color, dash: DASHES[place]})),
      }));
    }
    const metric = byId("metric").value, panels = new Map();
    for (const setting of settings) {
      const caption = `${data.losses[setting.loss].name}, lr ${data.rates[setting.rate]}: ${metric}`;
      const beta = data.betas[setting.beta];
      if (!panels.has(caption)) panels.set(caption, []);
      panels.get(caption).push(...linesOf(setting, metric, `beta ${beta.name}`, {color: beta.color}));
    }
    return [...panels].map(([caption, series]) => ({caption, series}));
  }

  function drawCurves() {
    const panels = curvePanels();
    const values = panels.flatMap(({series}) => series.flatMap(one => [...one.values, ...(one.low ?? []), ...(one.high ?? [])]))
      .filter(value => value !== null);
    let yRange;
    if (byId("one-scale").checked && values.length) {
      const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
      const edge = 0.04 * (high - low || 1);
      yRange = [low - edge, high + edge];
    }
    for (const one of panels) {
      chart(panel("curves"), {...one, x: data.steps.x, height: 235, xLabel: "step", sync: "steps", title: stepTitle, zero: true, yRange});
    }
    if (!panels.length) panel("curves").append(element("p", "Everything is hidden."));
  }

  function drawScores() {
    const scored = data.settings.filter(setting => setting.score);
    byId("scores").hidden = !scored.length;
    const edges = [...scored.flatMap(setting => setting.score), ...(data.base ?? [])].map(value => 100 * value);
    const low = Math.max(Math.min(...edges) - 4, -2), high = Math.min(Math.max(...edges) + 4, 102);
    data.rates.forEach((rate, place) => {
      const here = scored.filter(setting => setting.rate === place && isShown(setting)).sort((a, b) => a.place - b.place);
      if (!here.length) return;
      const series = data.losses.map((loss, number) => ({
        label: loss.name, color: loss.color, dash: DASHES[number % DASHES.length], points: true, span: true,
        values: here.map(setting => setting.loss === number ? 100 * setting.score[0] : null),
      }));
      chart(panel("scores"), {
        caption: `lr ${rate}`, x: here.map(setting => setting.place), xRange: [-0.5, data.betas.length - 0.5], series, height: 310, xLabel: "beta",
        xSplits: () => data.betas.map((_, at) => at),
        xValues: (_, splits) => splits.map(at => data.betas[at]?.name ?? ""),
        yRange: [low, high], title: index => here[index].name,
        tip: index => scoreTip(here[index]), over: u => drawIntervals(u, here),
      });
    });
  }

  function scoreTip(setting) {
    const {color} = data.losses[setting.loss];
    const lines = [{color, label: "strict accuracy", text: interval(setting.score)}];
    if (setting.runs.length > 1) {
      for (const run of setting.runs.map(place => data.runs[place])) {
        lines.push({label: run.name.replace(setting.name, "").replace(/^, /, ""), text: run.score === null ? "no score" : percent(run.score)});
      }
    }
    for (const reason of setting.breaks) lines.push({label: "broke:", text: reason});
    if (data.base) lines.push({label: "base model", text: interval(data.base)});
    return lines;
  }

  function drawIntervals(u, settings) {
    const pen = u.ctx, dot = devicePixelRatio, y = value => u.valToPos(100 * value, "y", true);
    pen.save();
    pen.beginPath();
    pen.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
    pen.clip();
    if (data.base) {
      pen.fillStyle = css("--quiet") + "22";
      pen.fillRect(u.bbox.left, y(data.base[2]), u.bbox.width, y(data.base[1]) - y(data.base[2]));
    }
    for (const setting of settings) {
      const color = onPage(data.losses[setting.loss].color), x = u.valToPos(setting.place, "x", true);
      const [value, low, high] = setting.score;
      pen.strokeStyle = pen.fillStyle = color;
      pen.lineWidth = 1.2 * dot;
      pen.beginPath();
      for (const end of [low, high]) { pen.moveTo(x - 4 * dot, y(end)); pen.lineTo(x + 4 * dot, y(end)); }
      pen.moveTo(x, y(low));
      pen.lineTo(x, y(high));
      pen.stroke();
      const seeds = setting.runs.length > 1 ? setting.runs.map(run => data.runs[run].score) : [];
      for (const seed of seeds.filter(one => one !== null)) {
        pen.beginPath();
        pen.arc(u.valToPos(setting.seedsPlace, "x", true), y(seed), 2.2 * dot, 0, 7);
        pen.fill();
      }
      if (setting.degenerate) {
        pen.strokeStyle = css("--ink");
        pen.lineWidth = 2.2 * dot;
        pen.beginPath();
        for (const side of [-1, 1]) {
          pen.moveTo(x - 6 * dot, y(value) - 6 * side * dot);
          pen.lineTo(x + 6 * dot, y(value) + 6 * side * dot);
        }
        pen.stroke();
      }
    }
    pen.restore();
    if (data.base) level(u, 100 * data.base[0], css("--quiet"), [3, 4]);
  }

  function drawCoefficient() {
    const {x, curves} = data.coefficient;
    byId("coefficient").hidden = !x.length;
    if (!x.length) return;
    const series = curves.map((values, place) => {
      const beta = data.betas[data.coefficientBetas[place]];
      return {label: `beta ${beta.name}`, color: beta.color, values};
    });
    chart(panel("coefficient"), {caption: "f(beta, margin)", xLabel: "margin, nats (without beta)", x, series, height: 280, title: index => `margin ${shown(x[index])}`});
  }

  function drawDisplacement() {
    byId("displacement").hidden = !data.displacements.length;
    const places = new Map();
    for (const one of data.displacements) {
      if (hidden.loss.has(one.loss) || hidden.rate.has(one.rate) || hidden.beta.has(one.beta)) continue;
      const caption = `lr ${data.rates[one.rate]}, beta ${data.betas[one.beta].name}: chosen responses, nats`;
      if (!places.has(caption)) places.set(caption, []);
      const {name, color} = data.losses[one.loss];
      places.get(caption).push({label: name, color, dash: DASHES[one.loss % DASHES.length], points: true, values: one.bins});
    }
    for (const [caption, series] of places) {
      const x = series[0].values.map((_, at) => at + 1);
      chart(panel("displacement"), {caption, x, xLabel: "tenth of the pairs, by CHES per token", series, height: 235, zero: true, title: at => `tenth ${x[at]}`});
    }
  }

  function drawScatter() {
    const metric = byId("candidate").value;
    const runs = data.settings.filter(isShown).flatMap(setting => setting.runs.map(run => ({...data.runs[run], loss: setting.loss, place: run})))
      .filter(run => run.score !== null && typeof run.ends[metric] === "number" && !hidden.run.has(run.place))
      .sort((a, b) => a.ends[metric] - b.ends[metric]);
    byId("scatter").hidden = data.runs.filter(run => run.score !== null).length < 3;
    if (byId("scatter").hidden || !runs.length) return;
    const series = data.losses.map((loss, number) => ({
      label: loss.name, color: loss.color, points: true, scattered: true,
      values: runs.map(run => run.loss === number ? 100 * run.score : null),
    }));
    chart(panel("scatter"), {
      caption: "strict accuracy, %", xLabel: metric, x: runs.map(run => run.ends[metric]), series, height: 300,
      xRange: (_, low, high) => { const edge = 0.04 * (high - low || 1); return [low - edge, high + edge]; },
      xValues: (_, splits) => splits.map(shown),
      title: index => runs[index].name,
      tip: index => [
        {color: data.losses[runs[index].loss].color, label: metric, text: shown(runs[index].ends[metric])},
        {label: "strict accuracy", text: percent(runs[index].score)},
      ],
    });
  }

  // ---- controls

  function chips(kind, items) {
    for (const row of all(`[data-chips=${kind}]`)) {
      row.hidden = items.length < 2;
      row.append(element("span", {loss: "loss", rate: "lr", beta: "beta", reward: "reward"}[kind]));
      items.forEach(({name, color}, place) => {
        const button = element("button");
        button.type = "button";
        button.dataset.kind = kind;
        button.dataset.place = place;
        if (color) {
          const mark = element("span", "", "mark");
          mark.dataset.color = color;
          button.append(mark);
        }
        button.append(name);
        button.addEventListener("click", () => {
          if (!hidden[kind].delete(place)) hidden[kind].add(place);
          draw();
        });
        row.append(button);
      });
    }
  }

  function options(select, names, chosen) {
    for (const name of names) select.add(new Option(name, name, false, name === chosen));
    select.addEventListener("change", draw);
  }

  function draw() {
    hideTips();
    for (const {plot, watch} of charts) { watch.disconnect(); plot.destroy(); }
    charts = [];
    all("[data-panels]").forEach(place => place.replaceChildren());
    const compared = byId("view").value === "betas";
    byId("metric-choice").hidden = !compared;
    all("[data-chips=reward]").forEach(row => { row.hidden = compared; });
    all(".chips .mark").forEach(mark => { mark.style.background = onPage(mark.dataset.color); });
    all(".chips button").forEach(button => {
      button.setAttribute("aria-pressed", String(!hidden[button.dataset.kind].has(Number(button.dataset.place))));
    });
    for (const part of [drawScores, drawCurves, drawDisplacement, drawCoefficient, drawScatter]) part();
    document.body.dataset.charts = charts.length;
  }

  chips("loss", data.losses);
  chips("rate", data.rates.map(name => ({name})));
  chips("beta", data.betas);
  chips("reward", data.rewards);
  options(byId("metric"), data.metrics, "rewards/chosen");
  options(byId("candidate"), data.candidates, "rewards/chosen");
  byId("view").value = data.sweep ? "betas" : "settings";
  byId("one-scale").checked = !data.sweep;
  byId("seed-choice").hidden = data.settings.every(setting => setting.runs.length < 2);
  for (const control of ["view", "seeds", "one-scale"]) byId(control).addEventListener("change", draw);
  all("[data-run]").forEach(box => {
    const run = Number(box.dataset.run);
    box.checked = true;
    box.addEventListener("change", () => {
      if (box.checked) hidden.run.delete(run); else hidden.run.add(run);
      draw();
    });
  });
  dark.addEventListener("change", draw);
  draw();
})();
