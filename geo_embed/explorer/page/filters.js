// What is asked of the samples beside where they lie: class, rank, score, confidence, agreement. Histograms show what is left.
import { show, shown } from "./address.js";
import { UNKNOWN } from "./data.js";
import { count, percent } from "./format.js";
import { h } from "./elements.js";
import { svg } from "./scatter.js";

const BINS = 32;
const RANKS = { 1: "1", 2: "2", 3: "3", 4: "4", 5: "5", 0: "none" };

export function makeFilters(run, samples) {
  const parts = [];
  const classes = (key, name, column) => {
    const counts = new Map();
    for (const index of column) counts.set(index, (counts.get(index) ?? 0) + 1);
    const options = run.classes.filter((item) => counts.has(item.index)).map((item) => h("option", { value: String(item.index) }, `${item.name} (${count(counts.get(item.index))})`));
    const choice = h("select", {}, h("option", { value: "" }, "All"), options);
    choice.addEventListener("change", () => show({ [key]: choice.value }));
    parts.push({ element: h("label", { class: "field" }, h("span", {}, name), choice), update: () => (choice.value = shown[key]) });
  };
  if (samples.state) classes("truth", "True class", samples.state);
  classes("answer", "Predicted class", samples.predicted_state);
  if (samples.rank) parts.push(ranks());
  if (samples.score) parts.push(range("score", "Score", samples.score, (x) => x.toFixed(2)));
  parts.push(range("confidence", "Confidence", samples.confidence, (x) => percent(x)));
  if (samples.agrees) parts.push(agreement(run, samples));
  if (samples.state) parts.push(confusions(run, samples));

  const reset = h("button", { type: "button", class: "quiet" }, "Clear all");
  reset.addEventListener("click", () => show({ truth: "", answer: "", rank: "", agrees: "", score: null, confidence: null, area: null, zone: null }));
  const tokens = h("div", { class: "tokens" });
  const element = h("details", { class: "filters", open: true }, h("summary", {}, "Filters"), h("div", { class: "between" }, h("h2", {}, "Filters"), reset), tokens, parts.map((part) => part.element), keys());
  return {
    element,
    update(mask) {
      for (const part of parts) part.update(mask);
      const drawn = [["area", "Area on the map"], ["zone", "Part of the embedding"]].filter(([key]) => shown[key]);
      tokens.replaceChildren(
        ...drawn.map(([key, name]) => {
          const button = h("button", { type: "button", class: "token", "aria-label": `Remove: ${name}` }, `${name} ×`);
          button.addEventListener("click", () => show({ [key]: null }));
          return button;
        })
      );
      reset.disabled = !["truth", "answer", "rank", "agrees", "score", "confidence", "area", "zone"].some((key) => shown[key]);
    },
  };
}

function keys() {
  const known = [
    ["N, P", "next, previous sample"],
    ["Esc", "close, or end a selection"],
    ["← ↑ → ↓", "move, on map and list"],
    ["+ − 0", "zoom in, out, show all"],
    ["V", "select what is in view"],
    ["Enter", "open the sample in the middle"],
    ["Shift + drag", "select a box"],
  ];
  return h("details", { class: "keys" }, h("summary", {}, "Keys"), h("dl", {}, known.map(([name, what]) => h("div", {}, h("dt", {}, name), h("dd", {}, what)))));
}

function ranks() {
  const boxes = Object.entries(RANKS).map(([rank, name]) => {
    const box = h("input", { type: "checkbox", value: rank });
    box.addEventListener("change", () => {
      const kept = boxes.filter((one) => one.checked).map((one) => one.value);
      show({ rank: kept.length === boxes.length ? "" : kept.join(",") });
    });
    return box;
  });
  // Integers are listed ascending: 0, none of the five, belongs to the end.
  const labels = boxes.map((box) => h("label", {}, box, h("span", {}, RANKS[box.value])));
  labels.push(labels.shift());
  return {
    element: h("fieldset", { class: "chips" }, h("legend", {}, "Rank of the truth"), labels),
    update() {
      const kept = new Set(shown.rank.split(","));
      for (const box of boxes) box.checked = kept.has(box.value);
    },
  };
}

function agreement(run, samples) {
  const options = { "": "All", yes: "Same class", no: "Another class", ...(samples.agrees.includes(UNKNOWN) && { none: "No answer" }) };
  const choice = h("select", {}, Object.entries(options).map(([value, name]) => h("option", { value }, name)));
  choice.addEventListener("change", () => show({ agrees: choice.value }));
  return { element: h("label", { class: "field" }, h("span", {}, `Beside ${run.compare}`), choice), update: () => (choice.value = shown.agrees) };
}

// Which class is taken for which in the selection, the most frequent first.
function confusions(run, samples) {
  const names = new Map(run.classes.map((item) => [item.index, item.name]));
  const rows = h("ol", {});
  const update = (mask) => {
    const counts = new Map();
    for (let row = 0; row < mask.length; row++) {
      const [truth, answer] = [samples.state[row], samples.predicted_state[row]];
      if (mask[row] && truth !== answer) counts.set(65536 * truth + answer, (counts.get(65536 * truth + answer) ?? 0) + 1);
    }
    const most = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 6);
    rows.replaceChildren(
      ...most.map(([pair, n]) => {
        const [truth, answer] = [Math.floor(pair / 65536), pair % 65536];
        const on = shown.truth === String(truth) && shown.answer === String(answer);
        const button = h("button", { type: "button", "aria-pressed": String(on), "aria-label": `${names.get(truth)} taken for ${names.get(answer)}: ${n}` }, h("span", {}, names.get(truth)), h("span", { class: "wrong" }, `→ ${names.get(answer)}`), h("span", { class: "n" }, count(n)));
        button.addEventListener("click", () => show(on ? { truth: "", answer: "" } : { truth: String(truth), answer: String(answer) }));
        return h("li", {}, button);
      })
    );
    if (!most.length) rows.replaceChildren(h("li", { class: "at" }, "None: every class here is right."));
  };
  return { element: h("div", { class: "confusions", role: "group", "aria-label": "Most frequent confusions" }, h("h3", {}, "Most frequent confusions"), rows), update };
}

// A histogram from 0 to 1 with a handle at each end of what is taken.
function range(key, name, column, text) {
  const bin = Uint8Array.from(column, (value) => Math.min(BINS - 1, Math.max(0, Math.floor(value * BINS))));
  const whole = new Array(BINS).fill(0);
  for (const k of bin) whole[k]++;
  // Counts of two orders of magnitude are to be seen beside each other.
  const height = (n) => (n ? 3 + 37 * Math.sqrt(n / Math.max(...whole)) : 0);
  const bars = (kind) => whole.map((_, k) => svg("rect", { class: kind, x: String(k * 10 + 1), width: "8" }));
  const [all, left] = [bars("all"), bars("left")];
  for (const [k, n] of whole.entries()) place(all[k], height(n));
  const handle = (end, at) => {
    const input = h("input", { type: "range", min: "0", max: "1", step: "0.01", value: String(at), "aria-label": `${name} ${end}` });
    input.addEventListener("input", () => {
      let [low, high] = [Number(lower.value), Number(upper.value)];
      if (low > high) [low, high] = input === lower ? [high, high] : [low, low];
      show({ [key]: low <= 0 && high >= 1 ? null : [low, high] });
    });
    return input;
  };
  const lower = handle("at least", 0);
  const upper = handle("at most", 1);
  const words = h("output", {});
  const histogram = svg("svg", { viewBox: `0 0 ${BINS * 10} 40`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...all, ...left);
  return {
    element: h("div", { class: "range", role: "group", "aria-label": name }, h("div", { class: "between" }, h("span", { class: "name" }, name), words), histogram, h("div", { class: "handles" }, lower, upper)),
    update(mask) {
      const [low, high] = shown[key] ?? [0, 1];
      lower.value = low;
      upper.value = high;
      for (const [input, value] of [[lower, low], [upper, high]]) input.setAttribute("aria-valuetext", text(value));
      words.textContent = shown[key] ? `${text(low)} to ${text(high)}` : "any";
      const counts = new Array(BINS).fill(0);
      for (let row = 0; row < mask.length; row++) counts[bin[row]] += mask[row];
      for (const [k, n] of counts.entries()) place(left[k], height(n));
    },
  };
}

function place(bar, height) {
  bar.setAttribute("y", (40 - height).toFixed(2));
  bar.setAttribute("height", height.toFixed(2));
}
