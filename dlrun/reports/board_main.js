// Start: what is shown comes from the address; a page that is kept up to date loads itself again with the same view.
const VIEW = `dlrun-board ${location.pathname}`;

// Keeps the state in the address, then lays out again what depends on it.
function changed(...parts) {
  writeState();
  for (const part of parts) part();
}

function later(wait, action) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(action, wait); };
}

function summarise() {
  const counts = new Map();
  for (const status of BY_NAME.get("status")?.cells ?? []) counts.set(status, (counts.get(status) ?? 0) + 1);
  const words = [...counts].sort((a, b) => b[1] - a[1]).map(([status, count]) => `${count.toLocaleString()} ${status || "unknown"}`);
  if (DATA.left_out.length) words.push(`${DATA.left_out.length} left out, listed at the end`);
  byId("summary").textContent = `${DATA.folder}: ${words.join(", ") || "no runs yet"}`;
  const time = new Date(1000 * DATA.written).toLocaleTimeString();
  byId("live").textContent = DATA.watch ? `live, last change ${time}` : `written ${new Date(1000 * DATA.written).toLocaleString()}`;
  const left = byId("left");
  left.hidden = !DATA.left_out.length;
  left.querySelector("summary").textContent = `left out: ${DATA.left_out.length}`;
  left.querySelector("ul").replaceChildren(...DATA.left_out.map(([name, reason]) => make("li", { text: `left out: ${name} (${reason})` })));
}

function layAll() {
  byId("filter").value = state.filter;
  layTable();
  document.body.offsetHeight; // the browser has laid the table out
  document.body.dataset.drawn ??= performance.now().toFixed(0);
  layColumns();
  const drawn = fillCurveMenus();
  byId("charts").hidden = !drawn && !DATA.sweeps.length;
  byId("curves").hidden = !drawn;
  byId("charts").classList.toggle("two", drawn > 0 && DATA.sweeps.length > 0);
  if (drawn) layCurves();
  fillSweepMenu();
  layAxes();
  document.body.dataset.ready ??= performance.now().toFixed(0);
}

function wire() {
  const on = (id, event, action) => byId(id).addEventListener(event, action);
  on("body", "click", (event) => {
    const line = event.target.closest("tr");
    if (!line || event.target.closest("a") || String(getSelection()).length) return;
    const row = Number(line.dataset.row);
    choose(row, !state.chosen.has(row));
    state.untouched = false;
    changed(markChosen, layCurves, layAxes);
  });
  on("scroll", "scroll", () => {
    const frame = byId("scroll");
    if (table.drawn < table.rows.length && frame.scrollTop + 2 * frame.clientHeight > frame.scrollHeight) drawRows(STEP);
  });
  const filter = later(120, () => { state.filter = byId("filter").value; table.drawn = 0; changed(layTable); });
  on("filter", "input", filter);
  for (const name of ["x", "y", "sweep"]) on(name, "change", (event) => { state[name] = event.target.value; changed(name === "sweep" ? layAxes : layCurves); });
  for (const name of ["train", "log"]) on(name, "change", (event) => { state[name] = event.target.checked ? "1" : ""; changed(layCurves); });
  const chosen = (rows) => () => {
    state.chosen.clear();
    state.untouched = false;
    for (const row of rows().slice(0, MOST)) choose(row, true);
    changed(markChosen, layCurves, layAxes);
  };
  on("choose", "click", chosen(() => table.rows.filter((row) => DATA.curves[row])));
  byId("choose").title = `${MOST} runs at most`;
  on("none", "click", chosen(() => []));
  on("best", "click", () => { chooseBest(); changed(markChosen, layCurves, layAxes); });
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll(".menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  addEventListener("hashchange", () => { readState(); layAll(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", layAll);
  addEventListener("resize", later(150, () => { layCurves(); layAxes(); }));
  for (const event of ["pointermove", "keydown", "wheel", "touchstart"])
    addEventListener(event, () => { touched.at = performance.now(); }, { passive: true });
}

// What an address does not say: where the reader had scrolled to, how many rows were drawn, the zoom of the curves.
function keepView() {
  const frame = byId("scroll"), filter = byId("filter"), { min, max } = curves.plot?.scales.x ?? {}, xs = curves.plot?.data[0];
  const view = { page: scrollY, top: frame.scrollTop, left: frame.scrollLeft, drawn: table.drawn, open: byId("left").open };
  if (xs && (min > xs[0] || max < xs.at(-1))) Object.assign(view, { zoom: { min, max } });
  if (document.activeElement === filter) Object.assign(view, { typing: [filter.selectionStart, filter.selectionEnd] });
  try {
    sessionStorage.setItem(VIEW, JSON.stringify(view));
  } catch { /* no storage: the page starts at its top again */ }
}

function restoreView() {
  let view = null;
  try {
    view = JSON.parse(sessionStorage.getItem(VIEW));
    sessionStorage.removeItem(VIEW);
  } catch { /* as in keepView */ }
  if (!view) return;
  if (view.drawn > table.drawn) drawRows(view.drawn - table.drawn);
  byId("left").open = view.open;
  byId("scroll").scrollTo(view.left, view.top);
  scrollTo(0, view.page);
  if (view.zoom && curves.plot) curves.plot.setScale("x", view.zoom);
  if (view.typing) {
    byId("filter").focus();
    byId("filter").setSelectionRange(...view.typing);
  }
}

// A page from a file may fetch nothing, so it loads itself again; not while it is hidden, or somebody reads or types.
// If nothing has been written for long, it looks less often.
function stayLive() {
  const age = Math.max(0, Date.now() / 1000 - DATA.written), wait = 1000 * Math.max(DATA.watch, Math.min(60, age / 20));
  const loaded = performance.now();
  const look = () => {
    const now = performance.now(), busy = now - touched.at < 2500 || document.querySelector(".menu[open]");
    if (document.hidden || now - loaded < wait || touched.at && busy) return void setTimeout(look, 400);
    keepView();
    location.reload();
  };
  setTimeout(look, wait);
}

DEFAULTS.y = DATA.metric;
history.scrollRestoration = "manual";
readState();
summarise();
wire();
layAll();
restoreView();
if (DATA.watch) stayLive();
