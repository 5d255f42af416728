// A sweep: the score of its trials against each of its axes; trials without a score are crosses at the bottom.
const axes = { plots: [] };
const NEAR = 22; // px
const FEW = 6; // labels below a scatter

function currentSweep() {
  return DATA.sweeps.find((sweep) => sweep.name === state.sweep) ?? DATA.sweeps[0];
}

function layAxes() {
  for (const plot of axes.plots) plot.destroy();
  axes.plots = [];
  const sweep = currentSweep();
  byId("axes").hidden = !sweep;
  if (!sweep) return;
  byId("sweep").value = sweep.name;
  byId("sweep-link").hidden = !sweep.link;
  if (sweep.link) byId("sweep-link").href = sweep.link;
  const lost = sweep.scores.filter((score) => score === null).length;
  const words = `${sweep.metric} (${sweep.lower ? "lower" : "higher"} is better) of ${sweep.rows.length} trials${lost ? `, ${lost} of them without a score (×)` : ""}; a click opens the report`;
  byId("axes-note").textContent = words;
  byId("scatters").replaceChildren();
  for (const axis of sweep.axes) layScatter(sweep, axis);
}

// Where a trial lies on an axis: its number, or the place of its text with a small shift so that equal ones stay apart.
function placeOf(axis, trial) {
  if (axis.numbers) return axis.numbers[trial];
  const place = axis.choices.indexOf(axis.texts[trial]);
  return place < 0 ? null : place + ((trial * 0.618034) % 1 - 0.5) * 0.3;
}

function xScale(axis) {
  if (!axis.numbers) return { time: false, range: () => [-0.5, axis.choices.length - 0.5] };
  const [low, high] = axis.range;
  const more = (high - low || Math.abs(low) || 1) * 0.05, ratio = (high / low) ** 0.05 || 1;
  return axis.log ? { time: false, distr: 3, range: () => [low / ratio, high * ratio] } : { time: false, range: () => [low - more, high + more] };
}

// The axis in words or numbers; few values are labelled themselves, of many words only every k-th has room.
function xAxis(axis) {
  const { choices } = axis, few = choices.length <= FEW && choices.length < axis.texts.length;
  if (axis.numbers && !few) return axisOf({ size: 30, space: 55, ...(axis.log ? logAxis() : { values: labelled }) });
  const every = Math.ceil(choices.length / FEW), places = choices.map((_, k) => k).filter((k) => k % every === 0);
  const cut = (k) => axis.numbers ? short(Number(choices[k])) : choices[k].length > 10 ? `${choices[k].slice(0, 9)}…` : choices[k];
  const splits = places.map((k) => axis.numbers ? Number(choices[k]) : k);
  const values = (plot) => { // none where it would lie over the one before
    let end = -Infinity;
    return places.map((k, n) => {
      const text = cut(k), half = 3.5 * text.length + 2, at = plot.valToPos(splits[n], "x");
      if (at - half < end) return "";
      end = at + half;
      return text;
    });
  };
  const grid = axis.numbers ? {} : { grid: { show: false } };
  return axisOf({ size: 30, splits: () => splits, values, filter: () => splits, ...grid });
}

function layScatter(sweep, axis) {
  const points = sweep.rows.map((row, trial) => ({ row, trial, x: placeOf(axis, trial), y: sweep.scores[trial] }))
    .filter(({ x }) => x !== null && (!axis.log || x > 0)).sort((a, b) => a.x - b.x);
  const frame = make("div", { class: "scatter" }), done = points.filter(({ y }) => y !== null);
  frame.append(make("div", { class: "name", text: `${axis.name}${axis.log ? " (log)" : ""}`, title: axis.name }));
  byId("scatters").append(frame);
  const scores = done.map(({ y }) => y).sort((a, b) => a - b), middle = scores[scores.length >> 1];
  const steep = sweep.lower && scores[0] > 0 && scores.at(-1) > 8 * middle; // a diverged loss would hide the others
  const plot = new uPlot({
    width: frame.clientWidth, height: sweep.axes.length < 3 && innerWidth >= 1000 ? 330 : 190, padding: [8, 12, 0, 0], legend: { show: false }, cursor: { show: false },
    scales: { x: xScale(axis), y: steep ? { distr: 3 } : {} },
    axes: [xAxis(axis), axisOf({ size: 48, space: 28, ...(steep ? logAxis() : {}) })],
    series: [{}, { paths: () => null, points: { show: true, size: 6, width: 0, fill: ink("dot"), stroke: ink("dot") } }],
    hooks: { draw: [(drawn) => paint(drawn, points)] },
  }, points.length ? [points.map(({ x }) => x), points.map(({ y }) => y)] : [[0], [null]], frame);
  axes.plots.push(plot);
  listen(plot, frame, points, sweep);
}

// Crosses for trials without a score, and the chosen runs in their colours.
function paint(plot, points) {
  const { ctx, bbox } = plot, size = 3.5 * devicePixelRatio, floor = bbox.top + bbox.height - 2 * size;
  ctx.save();
  for (const { row, x, y } of points) {
    const slot = state.chosen.get(row);
    if (y !== null && slot === undefined) continue;
    const left = plot.valToPos(x, "x", true), top = y === null ? floor : plot.valToPos(y, "y", true);
    ctx.beginPath();
    ctx.lineWidth = 1.6 * devicePixelRatio;
    ctx.strokeStyle = slot === undefined ? ink("fail") : colour(slot);
    if (y === null) {
      for (const turn of [1, -1]) {
        ctx.moveTo(left - size, top - turn * size);
        ctx.lineTo(left + size, top + turn * size);
      }
    } else {
      ctx.fillStyle = colour(slot);
      ctx.arc(left, top, 1.4 * size, 0, 2 * Math.PI);
      ctx.fill();
      ctx.strokeStyle = ink("card");
    }
    ctx.stroke();
  }
  ctx.restore();
}

function listen(plot, frame, points, sweep) {
  const nearest = (event) => {
    const box = plot.over.getBoundingClientRect(), left = event.clientX - box.left, top = event.clientY - box.top;
    let found = null, least = NEAR;
    for (const point of points) {
      const x = plot.valToPos(point.x, "x"), y = point.y === null ? box.height - 7 : plot.valToPos(point.y, "y");
      const away = Math.hypot(x - left, y - top);
      if (away < least) [found, least] = [{ ...point, left: x, top: y }, away];
    }
    return found;
  };
  const show = (point, touch) => showTip(frame, point && tipOf(sweep, point, touch), (point?.left ?? 0) + plot.over.offsetLeft, (point?.top ?? 0) + plot.over.offsetTop, touch);
  plot.over.addEventListener("pointermove", (event) => event.pointerType === "mouse" && show(nearest(event), false));
  plot.over.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(null, false));
  plot.over.addEventListener("click", (event) => {
    const point = nearest(event), touch = event.pointerType === "touch";
    if (touch) show(point, true); // a finger cannot hover: it shows the box first, with the link in it
    else if (point && DATA.links[point.row]) window.open(DATA.links[point.row], "_blank", "noopener");
  });
}

function tipOf(sweep, { row, trial, y }, touch) {
  const status = cell(row, "status"), link = DATA.links[row];
  const content = [make("div", { class: "soft", text: runName(cell(row, "run")) })];
  content.push(make("b", { text: y === null ? status || "no score" : `${sweep.metric} ${counted(row, sweep.metric, y)}` }));
  for (const { name, texts } of sweep.axes)
    if (texts[trial] !== "") content.push(make("div", { text: `${name}=${isNumber(texts[trial]) ? short(Number(texts[trial])) : texts[trial]}` }));
  if (touch && link) content.push(make("a", { text: "open its report", href: link, target: "_blank", rel: "noopener" }));
  else if (!link) content.push(make("div", { class: "soft", text: "no report yet" }));
  return content;
}

function fillSweepMenu() {
  byId("sweep").replaceChildren(...DATA.sweeps.map(({ name }) => make("option", { text: runName(name), value: name, title: name })));
  byId("sweep").hidden = DATA.sweeps.length < 2 && DATA.sweeps[0]?.name === "all runs";
}
