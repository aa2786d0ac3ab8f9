// What a point's colour means. Hues are those of the report, told apart by people who see fewer of them.
import { UNKNOWN } from "./data.js";
import { count, percent, score as asScore } from "./format.js";

export const KINDS = {
  error: "Distance",
  score: "Score",
  confidence: "Confidence",
  rank: "Rank of the truth",
  class: "Class",
  agrees: "Agreement",
};

// Street, city, region, country, continent (Hays & Efros 2008, and everybody since).
const KM = [25, 200, 750, 2500];
const KM_NAMES = ["up to 25 km", "25 to 200", "200 to 750", "750 to 2,500", "beyond"];
const STEPS = [0.2, 0.4, 0.6, 0.8];
const dark = matchMedia("(prefers-color-scheme: dark)");

// From good to bad: blue over ochre to a dark red; the order can be seen in grey, too, but for the ends.
const RAMPS = {
  light: ["#0b4f94", "#4a9bd4", "#c2a53a", "#e2711d", "#8f1d14"],
  dark: ["#4f8fe0", "#7cc7f5", "#e2cc63", "#ff9650", "#ff6b5c"],
};
const HUES = ["--a", "--b", "--c", "--d", "--e", "--f"];

export function ramp() {
  return RAMPS[dark.matches ? "dark" : "light"];
}

export const onScheme = (act) => dark.addEventListener("change", act);

export const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function bytesOf(colour) {
  const value = parseInt(colour.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

// Which kinds a split's samples can have, by its columns.
export function kindsOf(samples) {
  const known = { error: samples.km, score: samples.score, confidence: samples.confidence, rank: samples.rank, class: samples.state ?? samples.predicted_state, agrees: samples.agrees };
  return Object.keys(KINDS).filter((kind) => known[kind]);
}

// A bin of 0 … for each sample, the bins' colours, their names for the legend, and which bins lie on top: the worst, of which there are few.
export function binsOf(kind, samples, run) {
  const steps = (column, limits) => Uint8Array.from(column, (value) => limits.reduce((bin, limit) => bin + (value > limit), 0));
  const colours = ramp();
  if (kind === "error") {
    const bins = steps(samples.km, KM);
    return { bins, colours, names: KM_NAMES, level: bins };
  }
  if (kind === "score" || kind === "confidence") {
    const text = kind === "score" ? (x) => asScore(x).slice(0, 3) : (x) => percent(x);
    const names = [`up to ${text(0.2)}`, ...[0.4, 0.6, 0.8].map((x) => `to ${text(x)}`), `to ${kind === "score" ? "1" : percent(1)}`];
    const bins = steps(samples[kind], STEPS);
    return { bins, colours: [...colours].reverse(), names, level: bins.map((bin) => STEPS.length - bin) };
  }
  if (kind === "rank") {
    // Rank 1, 2, 3, 4 or 5, none of the five.
    const bins = Uint8Array.from(samples.rank, (rank) => (rank === 0 ? 4 : Math.min(rank, 4) - 1));
    return { bins, colours, names: ["first", "second", "third", "fourth or fifth", "none of the five"], level: bins };
  }
  if (kind === "agrees") {
    const bins = Uint8Array.from(samples.agrees, (agrees) => (agrees === UNKNOWN ? 2 : 1 - agrees));
    const lacks = samples.agrees.includes(UNKNOWN);
    const names = [`same class as ${run.compare}`, "another class", ...(lacks ? [`no answer of ${run.compare}`] : [])];
    // Few disagree, as a rule.
    return { bins, level: bins.map((bin) => [1, 2, 0][bin]), colours: ["--a", "--b", "--muted"].map(variable), names };
  }
  const dealt = dealHues(run.classes);
  const state = samples.state ?? samples.predicted_state;
  const place = new Map(run.classes.map((item, k) => [item.index, dealt[k]]));
  return { bins: Uint8Array.from(state, (index) => place.get(index) ?? 0), colours: HUES.map(variable), names: null };
}

// One of six hues for each class, so that the nearest others have another one.
export function dealHues(classes) {
  const dealt = [];
  for (const [k, here] of classes.entries()) {
    const cost = HUES.map((_, hue) => {
      let near = 0;
      for (let j = 0; j < k; j++) {
        if (dealt[j] !== hue) continue;
        const [dy, dx] = [classes[j].latitude - here.latitude, (classes[j].longitude - here.longitude) * Math.cos((here.latitude * Math.PI) / 180)];
        near += 1 / (0.01 + dx * dx + dy * dy);
      }
      return near;
    });
    dealt.push(cost.indexOf(Math.min(...cost)));
  }
  return dealt;
}

// The bytes of all points: what isn't selected is hardly there, and all of it less where a sample is open.
export function bytesFor({ bins, colours }, mask, faded) {
  // Below an open sample's marks the heat map is to be seen through however many points.
  const dim = Math.min(0.35, Math.max(0.06, 3.4 / Math.sqrt(1 + mask.reduce((sum, one) => sum + one, 0))));
  const whole = Math.round((faded ? dim : bins.length > 20000 ? 0.75 : 0.9) * 255);
  // Four bytes at once, as they lie in memory.
  const word = (colour, alpha) => new Uint32Array(Uint8Array.from([...bytesOf(colour), alpha]).buffer)[0];
  const table = Uint32Array.from(colours, (colour) => word(colour, whole));
  const left = word(variable("--muted"), Math.min(33, whole));
  const words = new Uint32Array(bins.length);
  for (let row = 0; row < bins.length; row++) words[row] = mask[row] ? table[bins[row]] : left;
  return new Uint8Array(words.buffer);
}

export function legendOf({ bins, colours, names }, mask) {
  if (!names) return [];
  const counts = new Array(names.length).fill(0);
  for (let row = 0; row < bins.length; row++) if (mask[row]) counts[bins[row]]++;
  return names.map((name, k) => [name, colours[k], count(counts[k])]);
}
