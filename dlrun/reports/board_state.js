// What the page shows (in the hash of its address, so that a reload or a copied link shows the same), and small tools.
const DATA = JSON.parse(document.getElementById("data").textContent);
const COLUMNS = DATA.columns, ROWS = DATA.links.length;
const BY_NAME = new Map(COLUMNS.map((column) => [column.name, column]));
const NAMES = COLUMNS.map((column) => column.name);
const COLOURS = 8, DASHES = [[], [7, 4], [2, 3]], MOST = 60; // chosen runs at most: more lines cannot be told apart
const byId = (id) => document.getElementById(id);
const cell = (row, name) => BY_NAME.get(name)?.cells[row] ?? "";
const indexOf = new Map(Array.from({ length: ROWS }, (_, row) => [cell(row, "run"), row]));
const touched = { at: 0 }; // when the reader last did something, in ms

// An element; text goes in as text, whatever it looks like.
function make(tag, { text, on, ...more } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(more)) {
    if (name === "class") element.className = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name.startsWith("aria-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  if (text !== undefined) element.textContent = text;
  for (const [event, listener] of Object.entries(on ?? {})) element.addEventListener(event, listener);
  element.append(...children);
  return element;
}

// A number with at most five digits; whole ones in full.
function short(value) {
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value);
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? Number(value.toPrecision(3)).toExponential() : String(Number(value.toPrecision(4)));
}
const scored = (value) => typeof value === "number" ? (Math.abs(value) < 100 ? value.toFixed(4) : short(value)) : String(value);
// A score of a run; an accuracy on fewer than 1,000 images with how many are right.
function counted(row, name, value) {
  const split = /(train|val|test)_acc$/.exec(name)?.[1], count = DATA.images[row]?.[split];
  if (!count || typeof value !== "number") return scored(value);
  return `${value.toFixed(3)} (${Math.round(value * count)} of ${count})`;
}
function clock(seconds) {
  if (seconds < 100) return `${Number(seconds.toPrecision(3))} s`;
  const [minutes, rest] = [Math.floor(seconds / 60), Math.floor(seconds % 60)];
  return minutes < 60 ? `${minutes} min ${rest} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
// The last folder of a run without its date; a trial with its sweep in front if `whole`.
function runName(path) {
  const parts = path.split("/"), last = parts.at(-1), plain = (name) => name.replace(/^\d{8}-\d{6}-(?=.)/, "");
  return /^\d+$/.test(last) && parts.length > 1 ? `${plain(parts.at(-2))}/${last}` : plain(last) || path;
}
const colour = (slot) => getComputedStyle(document.documentElement).getPropertyValue(`--c${slot % COLOURS}`).trim();
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const dash = (slot) => DASHES[Math.floor(slot / COLOURS) % DASHES.length];

// A sample of a run's line; a dot of its colour is not enough once dashes tell runs apart.
function key(slot) {
  const space = "http://www.w3.org/2000/svg", picture = document.createElementNS(space, "svg");
  const line = document.createElementNS(space, "line");
  picture.setAttribute("class", "key");
  for (const [name, value] of Object.entries({ x1: 0, x2: 24, y1: 5, y2: 5, stroke: colour(slot), "stroke-width": 3 }))
    line.setAttribute(name, value);
  line.setAttribute("stroke-dasharray", dash(slot).join(" "));
  picture.append(line);
  return picture;
}

const state = {};
const DEFAULTS = { sort: "", filter: "", x: "epoch", y: "", train: "", log: "", sweep: "" };

function readState() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of Object.entries(DEFAULTS)) state[name] = given.get(name) ?? value;
  state.shown = new Map(COLUMNS.map((column) => [column.name, column.shown]));
  for (const name of given.getAll("hide")) if (BY_NAME.has(name)) state.shown.set(name, false);
  for (const name of given.getAll("show")) if (BY_NAME.has(name)) state.shown.set(name, true);
  state.chosen = new Map(); // row → slot, which is its colour and dash
  state.untouched = !given.has("run");
  for (const word of given.getAll("run")) {
    const [, slot, path] = /^(\d{1,3}):(.*)$/s.exec(word) ?? [], row = indexOf.get(path);
    if (row !== undefined && state.chosen.size < MOST) state.chosen.set(row, Number(slot));
  }
  if (state.untouched) chooseBest();
}

function writeState() {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(DEFAULTS)) if (state[name] !== value) words.append(name, state[name]);
  for (const column of COLUMNS) {
    const shown = state.shown.get(column.name);
    if (shown !== column.shown) words.append(shown ? "show" : "hide", column.name);
  }
  if (!state.untouched) {
    for (const [row, slot] of state.chosen) words.append("run", `${slot}:${cell(row, "run")}`);
    if (!state.chosen.size) words.append("run", "none");
  }
  const hash = words.toString();
  try {
    history.replaceState(history.state, "", `#${hash}`);
  } catch {
    location.hash = hash;
  }
}

// The rows with curves and a score that counts, best first as the table is, five at most.
function chooseBest() {
  state.chosen.clear();
  state.untouched = true;
  const rows = Array.from({ length: ROWS }, (_, row) => row).filter((row) => DATA.curves[row]);
  const better = rows.filter((row) => ["completed", "running", "interrupted", "paused"].includes(cell(row, "status")));
  for (const row of (better.length ? better : rows).slice(0, 5)) choose(row, true);
}

function choose(row, on) {
  if (!on) state.chosen.delete(row);
  else if (!state.chosen.has(row) && state.chosen.size < MOST) {
    const taken = new Set(state.chosen.values());
    let slot = 0;
    while (taken.has(slot)) slot++;
    state.chosen.set(row, slot);
  }
}

// What tells some runs apart: the settings in which they differ, as one text for each.
function labels(rows) {
  const differing = COLUMNS.filter((c) => c.setting && new Set(rows.map((row) => c.cells[row])).size > 1);
  return rows.map((row) => differing.filter((c) => c.cells[row] !== "")
    .map((c) => `${c.name.split(".").at(-1)}=${short(c.cells[row])}`).join(" "));
}
