// The selected samples as rows, in an order that a person chooses; only the rows in sight are elements.
import { show, shown } from "./address.js";
import { ordered } from "./data.js";
import { km, plural } from "./format.js";
import { h } from "./elements.js";

const ROW = 44;
// Columns: what it is called, which column of the samples orders it, whether large values are the interesting ones.
const COLUMNS = [
  ["id", "Sample", false],
  ["state", "Class", false],
  ["km", "Distance", true],
  ["confidence", "Conf.", true],
  ["score", "Score", false],
];

export function makeList(run, samples, open) {
  const names = new Map(run.classes.map((item) => [item.index, item.name]));
  const columns = COLUMNS.filter(([key]) => key === "id" || key === "state" || samples[key]);
  const heads = columns.map(([key, name]) => {
    const button = h("button", { type: "button" }, name);
    button.addEventListener("click", () => {
      const [now, down] = order();
      show({ sort: now === key ? `${down ? "" : "-"}${key}` : `${columns.find(([k]) => k === key)[2] ? "-" : ""}${key}` });
    });
    return h("div", { role: "columnheader", class: `cell ${key}` }, button);
  });
  const inner = h("div", { class: "inner", role: "presentation" });
  const body = h("div", { class: "rows", role: "presentation" }, inner);
  const grid = h("div", { class: "list", role: "grid", tabindex: "0", "aria-label": "Selected samples" }, h("div", { role: "row", class: "heads" }, heads), body);
  const nothing = h("p", { class: "empty", hidden: true }, "No sample is left by these filters. Clear one of them.");
  grid.classList.toggle("short", !samples.km);
  const title = h("h2", {}, "Samples");
  let rows = new Uint32Array(0);
  let active = 0;

  function order() {
    const down = shown.sort.startsWith("-");
    const key = shown.sort.replace("-", "");
    return columns.some(([name]) => name === key) ? [key, down] : [columns.at(-1)[0], false];
  }

  function draw() {
    const first = Math.max(0, Math.floor(body.scrollTop / ROW) - 4);
    const last = Math.min(rows.length, Math.ceil((body.scrollTop + body.clientHeight) / ROW) + 4);
    const made = [];
    for (let k = first; k < last; k++) made.push(line(k));
    inner.replaceChildren(...made);
    grid.setAttribute("aria-activedescendant", rows.length ? `row-${rows[active]}` : "");
  }

  function line(k) {
    const row = rows[k];
    const cells = {
      id: () => samples.ids[row],
      state: () => {
        const [truth, answer] = [names.get(samples.state?.[row]), names.get(samples.predicted_state[row])];
        if (!truth) return answer ?? "";
        return truth === answer ? [h("span", { class: "right" }, truth)] : [h("span", {}, truth), h("span", { class: "wrong" }, `→ ${answer}`)];
      },
      km: () => km(samples.km[row]),
      confidence: () => samples.confidence[row].toFixed(2),
      score: () => samples.score[row].toFixed(2),
    };
    const made = h(
      "div",
      { role: "row", id: `row-${row}`, class: "line", "aria-rowindex": String(k + 2), "aria-selected": String(k === active) },
      columns.map(([key]) => h("div", { role: "gridcell", class: `cell ${key}` }, cells[key]()))
    );
    made.classList.toggle("open", samples.ids[row] === shown.sample);
    made.style.top = `${k * ROW}px`;
    made.addEventListener("click", () => {
      active = k;
      open(row);
    });
    return made;
  }

  function reveal() {
    const top = active * ROW;
    if (top < body.scrollTop) body.scrollTop = top;
    else if (top + ROW > body.scrollTop + body.clientHeight) body.scrollTop = top + ROW - body.clientHeight;
    draw();
  }

  grid.addEventListener("keydown", (event) => {
    if (event.target !== grid) return;
    const page = Math.max(1, Math.floor(body.clientHeight / ROW) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -rows.length, End: rows.length };
    if (event.key in moves) {
      active = Math.min(rows.length - 1, Math.max(0, active + moves[event.key]));
      reveal();
    } else if (event.key === "Enter" && rows.length) open(rows[active]);
    else return;
    event.preventDefault();
  });
  body.addEventListener("scroll", () => requestAnimationFrame(draw));
  new ResizeObserver(draw).observe(body);

  return {
    element: h("div", { class: "samples" }, title, nothing, grid),
    update(mask) {
      const [key, down] = order();
      for (const [k, [name]] of columns.entries()) {
        heads[k].setAttribute("aria-sort", name === key ? (down ? "descending" : "ascending") : "none");
      }
      const all = ordered(samples, key);
      const kept = new Uint32Array(all.length);
      let n = 0;
      for (let k = 0; k < all.length; k++) {
        const row = all[down ? all.length - 1 - k : k];
        if (mask[row]) kept[n++] = row;
      }
      rows = kept.subarray(0, n);
      active = Math.max(0, rows.indexOf(samples.rowOf.get(shown.sample) ?? -1));
      title.textContent = plural(n, "sample");
      nothing.hidden = n > 0;
      grid.hidden = !n;
      grid.setAttribute("aria-rowcount", String(n + 1));
      inner.style.height = `${n * ROW}px`;
      body.scrollTop = 0;
      reveal();
    },
    // The sample before or after in this order, or null.
    beside(sample, step) {
      const k = rows.indexOf(samples.rowOf.get(sample) ?? -1);
      const row = k < 0 ? rows[0] : rows[k + step];
      return row === undefined ? null : samples.ids[row];
    },
    place: (sample) => [rows.indexOf(samples.rowOf.get(sample) ?? -1) + 1, rows.length],
    focus: () => grid.focus(),
    draw,
  };
}
