// The table: sorted, filtered, its columns hidden or shown; rows are drawn as far as somebody scrolls.
const STEP = 200; // rows drawn at a time
const table = { rows: [], drawn: 0, best: new Map() };
const allText = Array(ROWS);

// The cells of a row in lower case, as they are and as they are shown.
function textOf(row) {
  return allText[row] ??= fold(COLUMNS.map((c) => c.numeric ? `${c.cells[row]} ${short(c.cells[row])}` : c.cells[row]).join("\n"));
}

function sortRows(rows) {
  const word = state.sort.replace(/^-/, ""), column = BY_NAME.get(word);
  if (!column) return rows;
  const up = (column.score && !column.lower) === state.sort.startsWith("-");
  const order = column.numeric ? (a, b) => a - b : (a, b) => a < b ? -1 : a > b ? 1 : 0;
  const { cells } = column;
  return rows.sort((a, b) => {
    if (cells[a] === "" || cells[b] === "") return (cells[a] === "") - (cells[b] === "") || a - b;
    return (up ? order(cells[a], cells[b]) : order(cells[b], cells[a])) || a - b;
  });
}

function layTable() {
  let keep = () => true;
  const error = byId("error");
  error.hidden = true;
  try {
    keep = filterOf(state.filter, NAMES, cell, textOf);
  } catch (problem) {
    error.textContent = problem.message;
    error.hidden = false;
  }
  table.rows = sortRows(Array.from({ length: ROWS }, (_, row) => row).filter(keep));
  drawHead();
  const shown = table.rows.length === ROWS ? `${ROWS.toLocaleString()} runs` : `${table.rows.length.toLocaleString()} of ${ROWS.toLocaleString()} runs`;
  byId("count").textContent = ROWS ? `${shown}, ${state.chosen.size} chosen` : "no runs yet";
  const frame = byId("scroll"), drawn = Math.max(STEP, Math.ceil(table.drawn / STEP) * STEP), at = frame.scrollTop;
  byId("body").replaceChildren();
  table.drawn = 0;
  drawRows(drawn);
  frame.scrollTop = at;
}

const visible = () => COLUMNS.filter((column) => state.shown.get(column.name));

function drawHead() {
  const word = state.sort.replace(/^-/, "") || DATA.metric;
  const cells = visible().map((column) => {
    const { name } = column, parts = name.split("."), head = make("button", { title: name });
    if (parts.length > 1) head.append(make("small", { text: `${parts.slice(0, -1).join(".")}.` }));
    head.append(parts.at(-1));
    head.addEventListener("click", () => {
      state.sort = name === word && !state.sort.startsWith("-") ? `-${name}` : name;
      if (state.sort === DATA.metric) state.sort = ""; // the order of the comparison: failed runs last
      table.drawn = 0;
      byId("scroll").scrollTop = 0;
      changed(layTable);
    });
    const th = make("th", { class: `${column.numeric ? "number" : ""}${name === "run" ? " run" : ""}`, data: { name } }, head);
    const up = (column.score && !column.lower) === state.sort.startsWith("-");
    if (name === word) th.setAttribute("aria-sort", up ? "ascending" : "descending");
    return th;
  });
  byId("head").replaceChildren(make("th", { class: "pick", "aria-label": "chosen" }), ...cells);
}

function drawRows(count) {
  const columns = visible(), part = document.createDocumentFragment();
  for (const row of table.rows.slice(table.drawn, table.drawn + count)) part.append(drawRow(row, columns));
  table.drawn = Math.min(table.drawn + count, table.rows.length);
  byId("body").append(part);
}

function drawRow(row, columns) {
  const slot = state.chosen.get(row), chosen = slot !== undefined;
  const box = make("input", { type: "checkbox", checked: chosen, "aria-label": `choose ${cell(row, "run")}` });
  const dot = make("i");
  if (chosen) dot.style.background = colour(slot);
  const pick = make("td", { class: "pick" }, make("span", {}, box, dot));
  const line = make("tr", { class: chosen ? "chosen" : "", data: { row } }, pick);
  for (const column of columns) line.append(drawCell(row, column));
  return line;
}

function drawCell(row, column) {
  const value = column.cells[row], { name } = column;
  if (name === "run") {
    const link = DATA.links[row], shown = runName(value);
    const content = link ? make("a", { text: shown, href: link, target: "_blank", rel: "noopener" }) : make("span", { text: shown });
    return make("td", { class: "run", title: value }, content);
  }
  if (name === "status") {
    const known = /^[a-z_]{1,20}$/.test(value) ? value : "";
    return make("td", {}, make("span", { class: value ? `status ${known}` : "", text: value }));
  }
  if (name === "epochs" && cell(row, "status") === "running") return drawProgress(row, value);
  const text = value === "" ? "" : column.score ? counted(row, name, value) : name === "seconds" ? clock(Number(value)) : short(value);
  const first = name === DATA.metric ? row === 0 : value === bestOf(column); // rows are numbered best setting first
  const best = column.score && value !== "" && bestOf(column) !== null && first ? " best" : "";
  return make("td", { class: `${column.numeric ? "number" : ""}${best}`, text, title: text.length > 24 || text !== String(value) ? String(value) : "" });
}

function drawProgress(row, value) {
  const done = Math.max(Number(value) || 0, DATA.curves[row]?.epoch.at(-1) ?? 0), planned = DATA.planned[row];
  const found = make("td", { class: "number", text: planned ? `${done}/${planned}` : String(done) });
  if (planned) found.append(make("progress", { max: planned, value: done }));
  return found;
}

// The best score of a column among completed runs, where there is more than one.
function bestOf(column) {
  if (!table.best.has(column.name)) {
    const values = column.cells.filter((value, row) => typeof value === "number" && cell(row, "status") === "completed");
    const lower = column.name === DATA.metric ? DATA.lower : column.lower;
    const best = values.length > 1 ? values.reduce((a, b) => (lower ? b < a : b > a) ? b : a) : null;
    table.best.set(column.name, best);
  }
  return table.best.get(column.name);
}

function markChosen() {
  for (const line of byId("body").rows) {
    const slot = state.chosen.get(Number(line.dataset.row)), chosen = slot !== undefined;
    line.className = chosen ? "chosen" : "";
    line.querySelector("input").checked = chosen;
    line.querySelector("i").style.background = chosen ? colour(slot) : "";
  }
  byId("count").textContent = byId("count").textContent.replace(/, \d+ chosen/, `, ${state.chosen.size} chosen`);
}

function layColumns() {
  const all = (shown) => () => {
    for (const { name } of COLUMNS) state.shown.set(name, name === "run" || (shown ?? BY_NAME.get(name).shown));
    changed(layColumns, layTable);
  };
  const buttons = make("div", { class: "row" }, make("button", { text: "all", on: { click: all(true) } }),
    make("button", { text: "default", on: { click: all(undefined) } }), make("button", { text: "none", on: { click: all(false) } }));
  const boxes = COLUMNS.filter((column) => column.name !== "run").map(({ name }) => {
    const toggle = (event) => { state.shown.set(name, event.target.checked); changed(layTable); };
    const box = make("input", { type: "checkbox", checked: state.shown.get(name), on: { change: toggle } });
    return make("label", { data: { name } }, box, make("span", { text: name }));
  });
  byId("column-list").replaceChildren(buttons, ...boxes);
}
