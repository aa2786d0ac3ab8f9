// Numbers as people read them.

const WHOLE = new Intl.NumberFormat("en");

export const count = (n) => WHOLE.format(n);

export const score = (x) => (x === null || x === undefined ? "–" : x.toFixed(4));

export const percent = (x) => (x === null || x === undefined ? "–" : `${(100 * x).toFixed(x > 0 && x < 0.0995 ? 1 : 0)}\u00a0%`);

// On an axis.
export const asPercent = (x) => `${Math.round(100 * x)}\u00a0%`;

export function km(x) {
  if (x === null || x === undefined) return "–";
  return `${x < 10 ? x.toFixed(1) : WHOLE.format(Math.round(x))} km`;
}

export function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

// A value of the headline by its kind.
export function measure(x, kind) {
  if (x === null || x === undefined) return "–";
  if (kind === "km") return km(x);
  if (kind === "points") return count(Math.round(x));
  return score(x);
}

export function interval(low, high, kind) {
  if (low === null || low === undefined) return "";
  const text = (x) => (kind === "share" ? x.toFixed(3) : count(Math.round(x)));
  return `${text(low)} to ${text(high)}`;
}

export function signed(x) {
  return `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(4)}`;
}

// No axis says more than its room allows; a letter is never cut in two.
export function short(name, most = 18) {
  const letters = Array.from(name);
  return letters.length > most ? `${letters.slice(0, most - 1).join("").trimEnd()}…` : name;
}
