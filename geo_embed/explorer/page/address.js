// What is shown, kept in the address after the #: back, forward, a reload and a copied address bring it back.

const PLAIN = { mode: "map", split: "", colour: "", place: "true", truth: "", answer: "", rank: "", agrees: "", sample: "", sort: "score", seed: "" };
const NUMBERS = ["score", "confidence", "at", "area", "zone"];
const MODES = ["map", "try", "play"];

// A change of these is a step that "back" undoes; any other only rewrites the address.
const STEPS = new Set(["mode", "split", "sample"]);

const listeners = [];
let pending = 0;

export const shown = read();

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  const found = {};
  for (const [key, value] of Object.entries(PLAIN)) found[key] = given.get(key) ?? value;
  if (!MODES.includes(found.mode)) found.mode = PLAIN.mode;
  for (const key of NUMBERS) {
    const numbers = (given.get(key) ?? "").split(",").map(Number);
    found[key] = given.get(key) && numbers.length > 1 && numbers.every(Number.isFinite) ? numbers : null;
  }
  return found;
}

// The address of what is shown, but for what `patch` says.
export function hash(patch = {}) {
  const all = { ...shown, ...patch };
  const parts = new URLSearchParams();
  for (const [key, value] of Object.entries(PLAIN)) if (all[key] !== value) parts.set(key, all[key]);
  for (const key of NUMBERS) if (all[key]) parts.set(key, all[key].map((x) => +x.toFixed(5)).join(","));
  return `#${parts.toString().replaceAll("%2C", ",")}`;
}

// Show something else: listeners hear of the keys that changed.
export function show(patch) {
  const changed = Object.keys(patch).filter((key) => String(patch[key] ?? "") !== String(shown[key] ?? ""));
  if (!changed.length) return;
  Object.assign(shown, patch);
  clearTimeout(pending);
  if (changed.some((key) => STEPS.has(key))) history.pushState(null, "", hash());
  // Browsers refuse an address that is rewritten with every frame.
  else pending = setTimeout(() => history.replaceState(null, "", hash()), 150);
  tell(changed);
}

export function onShow(listener) {
  listeners.push(listener);
}

function tell(changed) {
  for (const listener of listeners) listener(new Set(changed));
}

addEventListener("popstate", () => {
  clearTimeout(pending);
  const before = { ...shown };
  Object.assign(shown, read());
  const changed = Object.keys(shown).filter((key) => String(shown[key] ?? "") !== String(before[key] ?? ""));
  if (changed.length) tell(changed);
});
