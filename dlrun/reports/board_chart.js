// What curves and scatters share: axes in the colours of the page, and the box that a hover fills.
const axisOf = (more) => ({
  stroke: ink("soft"), font: "12px system-ui, sans-serif", grid: { stroke: ink("line"), width: 1 },
  ticks: { stroke: ink("line"), width: 1, size: 5 }, ...more,
});

const labelled = (_, values) => values.map((value) => value === null ? "" : short(value)); // null: without room
// A logarithmic axis has labels at 1, 2 and 5 times a power of ten, and grid lines at powers of ten.
const logLabels = (plot, values) => labelled(plot, values.map((value) => /^[125](\.0*)?e/.test(value?.toExponential(6)) ? value : null));
const powers = (_, values) => values.map((value) => value > 0 && Math.abs(Math.log10(value) % 1) < 1e-6 ? value : null);
const logAxis = () => {
  const lines = axisOf({});
  return { values: logLabels, grid: { ...lines.grid, filter: powers }, ticks: { ...lines.ticks, filter: powers } };
};

// Shows a box beside a point of a frame, inside the frame; none without content.
function showTip(frame, content, left, top, touch = false) {
  frame.querySelector(":scope > .tip")?.remove();
  if (!content) return;
  const box = make("div", { class: touch ? "tip touch" : "tip" }, ...content);
  frame.append(box);
  const right = left + 14 + box.offsetWidth <= frame.clientWidth ? left + 14 : left - 14 - box.offsetWidth;
  box.style.left = `${Math.max(0, right)}px`;
  box.style.top = `${Math.max(0, Math.min(top - box.offsetHeight / 2, frame.clientHeight - box.offsetHeight))}px`;
}
