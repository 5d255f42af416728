// The overlaid curves of the chosen runs, by epoch, step or time.
const curves = { plot: null, lines: [], near: null };
const TIP = () => innerWidth < 700 ? 1 : 8; // lines of the box that a hover shows; the legend shows all values
const WHOLE = Array.from({ length: 30 }, (_, k) => [1, 2, 5][k % 3] * 10 ** Math.floor(k / 3)); // steps between labels
const UNITS = { epoch: "epoch", step: "step", time: "time" };
const ROUND = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800]; // s

// Points of a run with x rising, which resumed or damaged files may lack; null if it has none.
function lineOf(row, name) {
  const found = DATA.curves[row];
  if (!found?.[name]) return null;
  const at = { epoch: (k) => found.epoch[k], time: (k) => found.time[k], step: (k) => found.steps ? found.epoch[k] * found.steps : null }[state.x];
  const xs = [], ys = [];
  for (let k = 0; k < found.epoch.length; k++) {
    const x = at(k), y = found[name][k];
    if (x === null || xs.length && x <= xs.at(-1)) continue;
    xs.push(x);
    ys.push(y !== null && state.log && y <= 0 ? null : y);
  }
  return ys.some((y) => y !== null) ? [xs, ys] : null;
}

function linesOf() {
  const found = [], other = state.y.replace(/^(ema_)?val_/, "train_");
  for (const [row, slot] of state.chosen) {
    const data = lineOf(row, state.y);
    if (data) found.push({ row, slot, data, main: true });
    const train = state.train && other !== state.y ? lineOf(row, other) : null;
    if (train) found.push({ row, slot, data: train, main: false });
  }
  return found;
}

// The index of the point of a line that is nearest to the cursor; none beyond the ends of the line.
function nearestPoint(plot, series, index, x) {
  const ys = plot.data[series], xs = plot.data[0];
  if (!series || ys[index] != null) return index;
  let left = index, right = index;
  while (left >= 0 && ys[left] == null) left--;
  while (right < ys.length && ys[right] == null) right++;
  const here = plot.valToPos(x, "x"), away = (k) => Math.abs(plot.valToPos(xs[k], "x") - here);
  if (left < 0 || right >= ys.length) {
    const only = left < 0 ? right : left;
    return only >= 0 && only < ys.length && away(only) < 12 ? only : null;
  }
  return away(left) <= away(right) ? left : right;
}

function layCurves() {
  curves.plot?.destroy();
  const frame = byId("plot"), lines = curves.lines = linesOf(), missing = state.chosen.size - lines.filter((l) => l.main).length;
  curves.plot = curves.near = null;
  frame.replaceChildren();
  frame.classList.toggle("empty", !lines.length);
  byId("train-label").hidden = !/^(ema_)?val_/.test(state.y);
  const why = state.x === "step" ? `no ${state.y}, or no steps of an epoch` : `no ${state.y}`;
  byId("curves-note").textContent = !state.chosen.size ? "Choose runs in the table to see their curves." : missing ? `${missing} of ${state.chosen.size} chosen runs: ${why} in metrics.csv` : "";
  drawLegend();
  if (!lines.length) return;
  const joined = lines.length > 1 ? uPlot.join(lines.map((line) => line.data)) : lines[0].data;
  const series = lines.map(({ slot, main, data }) => ({
    stroke: colour(slot), width: main ? 2 : 1.2, dash: main ? dash(slot) : [4, 4], points: { show: data[0].length === 1, size: 8, fill: colour(slot) },
  }));
  const long = (state.x === "time" ? joined[0].at(-1) : 0) >= 7200, unit = long ? 3600 : 60;
  const pair = (value) => `${Math.floor(value / unit)}:${String(Math.floor((value % unit) / (unit / 60))).padStart(2, "0")}`;
  const times = { incrs: [0.1, 0.2, 0.5, ...ROUND], values: (_, all) => all.map((value) => value === null ? "" : joined[0].at(-1) < 60 ? short(value) : pair(value)) };
  const words = state.x !== "time" ? UNITS[state.x] : `time of training and evaluation (${joined[0].at(-1) < 60 ? "s" : long ? "h:min" : "min:s"})`;
  curves.plot = new uPlot({
    width: frame.clientWidth, height: frame.clientHeight, legend: { show: false },
    scales: { x: { time: false }, y: state.log ? { distr: 3, range: (_, low, high) => [low / 1.15, high * 1.15] } : {} },
    axes: [axisOf({ label: words, size: 30, labelSize: 18, labelGap: 0, labelFont: "12px system-ui, sans-serif", ...(state.x === "time" ? times : { incrs: WHOLE }) }),
      axisOf({ size: 56, ...(state.log ? logAxis() : {}) })],
    series: [{}, ...series],
    cursor: { dataIdx: nearestPoint, focus: { prox: 24 }, points: { size: 7 }, y: false, drag: { x: true, y: false } },
    focus: { alpha: 0.3 },
    hooks: { setCursor: [hoverCurves], setSeries: [(_, near) => { curves.near = near; }] },
  }, joined, frame);
}

const valueOf = (row, name, value) => /_acc$/.test(name) ? counted(row, name, value) : short(value);

function hoverCurves(plot) {
  const { left, top, idx, idxs } = plot.cursor, frame = byId("plot");
  const inside = left >= 0 && idx !== null;
  const found = !inside ? [] : curves.lines.map((line, k) => ({ ...line, near: curves.near === k + 1, value: idxs[k + 1] == null ? null : plot.data[k + 1][idxs[k + 1]] }));
  const there = found.filter((line) => line.main && line.value != null), values = new Map(there.map((line) => [line.row, line]));
  const train = new Map(found.filter((line) => !line.main && line.value != null).map((line) => [line.row, valueOf(line.row, state.y.replace("val_", "train_"), line.value)]));
  for (const item of byId("legend").children) {
    const line = values.get(Number(item.dataset.row));
    item.querySelector(".value").textContent = line ? valueOf(line.row, state.y, line.value) : "";
    item.classList.toggle("near", Boolean(line?.near));
  }
  if (!there.length) return showTip(frame, null);
  const down = /loss$/.test(state.y);
  there.sort((a, b) => b.near - a.near || (down ? a.value - b.value : b.value - a.value));
  const x = plot.data[0][idx], named = labels([...state.chosen.keys()]), rows = [...state.chosen.keys()];
  const content = [make("div", { class: "soft", text: state.x === "time" ? clock(x) : `${state.x} ${short(x)}` })];
  for (const { row, slot, value, near } of there.slice(0, TIP())) {
    const words = make("span", { class: "words", text: named[rows.indexOf(row)] || runName(cell(row, "run")) });
    const line = make("div", { class: near ? "line near" : "line" }, key(slot), words, make("b", { text: valueOf(row, state.y, value) }));
    if (train.has(row)) line.append(make("span", { class: "soft", text: `train ${train.get(row)}` }));
    content.push(line);
  }
  if (there.length > TIP() && TIP() > 1) content.push(make("div", { class: "soft", text: `and ${there.length - TIP()} more below` }));
  showTip(frame, content, left + plot.over.offsetLeft, top + plot.over.offsetTop);
}

function drawLegend() {
  const rows = [...state.chosen.keys()], named = labels(rows);
  const items = rows.map((row, k) => {
    const name = runName(cell(row, "run")), words = make("span", { class: "words", title: cell(row, "run") });
    if (named[k]) words.append(make("span", { text: `${named[k]} ` }));
    words.append(make("span", { class: named[k] ? "soft" : "", text: name }));
    const remove = () => { choose(row, false); state.untouched = false; changed(markChosen, layCurves, layAxes); };
    return make("li", { data: { row } }, key(state.chosen.get(row)), words, make("span", { class: "value" }),
      make("button", { text: "×", title: "choose no longer", "aria-label": `choose ${name} no longer`, on: { click: remove } }));
  });
  byId("legend").replaceChildren(...items);
}

function fillCurveMenus() {
  const names = new Set(DATA.curves.flatMap((found) => found ? Object.keys(found) : []));
  for (const name of ["steps", "epoch", "time"]) names.delete(name);
  if (!names.has(state.y)) state.y = DEFAULTS.y;
  byId("y").replaceChildren(...[...names].map((name) => make("option", { text: name, value: name })));
  byId("y").value = state.y;
  if (!UNITS[state.x]) state.x = DEFAULTS.x;
  byId("x").value = state.x;
  byId("train").checked = Boolean(state.train);
  byId("log").checked = Boolean(state.log);
  return names.size;
}
