// What the server answers, the samples as columns, which of them are selected, and how good the model is on those.
import { tableFromIPC } from "./vendor/explore.min.js";

export class Failure extends Error {
  constructor(error, hint, status = 0) {
    super(error);
    this.hint = hint ?? "";
    this.status = status;
  }
}

async function ask(url, options) {
  let answer;
  try {
    answer = await fetch(url, { credentials: "same-origin", ...options });
  } catch (failure) {
    // Whoever ended the request knows why.
    if (options?.signal?.aborted) throw failure;
    throw new Failure("The server doesn't answer", "Was geo explore stopped? Start it again, then reload this page.");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Failure(told.error ?? `The server answered ${answer.status}`, told.hint, answer.status);
}

export const getJson = async (url) => (await ask(url)).json();

export const postJson = async (url, body) =>
  (await ask(url, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) })).json();

export const postForm = async (url, form, signal) => (await ask(url, { method: "POST", body: form, signal })).json();

// In place of whether two runs agree, where the other one has no answer.
export const UNKNOWN = 2;

const NUMBERS = ["latitude", "longitude", "predicted_latitude", "predicted_longitude", "km", "score", "confidence", "x", "y", "compare_km", "state", "predicted_state", "rank"];

// The samples of a split: {length, ids, latitude, …}, typed arrays; a column that the split lacks is null.
export async function getSamples(split, compare) {
  const answer = await ask(`/api/samples.arrow?${new URLSearchParams({ split, ...(compare && { compare }) })}`);
  const table = tableFromIPC(new Uint8Array(await answer.arrayBuffer()));
  const names = new Set(table.names);
  const samples = { length: table.numRows, ids: names.has("sample_id") ? table.getChild("sample_id").toArray() : [] };
  for (const name of NUMBERS) samples[name] = names.has(name) ? dense(table.getChild(name)) : null;
  samples.agrees = names.has("agrees") ? Uint8Array.from(table.getChild("agrees").toArray(), (agrees) => (agrees === null ? UNKNOWN : Number(agrees))) : null;
  samples.rowOf = new Map(Array.from(samples.ids, (id, row) => [id, row]));
  return samples;
}

// A column with gaps comes as a list: NaN stands for what isn't there.
function dense(column) {
  const values = column.toArray();
  return Array.isArray(values) ? Float32Array.from(values, (value) => value ?? NaN) : values;
}

// Whether places (x, y) lie inside a drawn shape: four numbers are a box by two corners, more a polygon's corners.
export function inside(shape, x, y) {
  if (shape.length === 4) {
    const [x0, y0, x1, y1] = shape;
    return x >= Math.min(x0, x1) && x <= Math.max(x0, x1) && y >= Math.min(y0, y1) && y <= Math.max(y0, y1);
  }
  let odd = false;
  for (let i = 0, j = shape.length - 2; i < shape.length; j = i, i += 2) {
    const [ax, ay, bx, by] = [shape[i], shape[i + 1], shape[j], shape[j + 1]];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
  }
  return odd;
}

// A mask over samples: 1 where every filter takes the sample. Positions are those of the map and of the embedding view.
export function select(samples, shown, onMap, inSpace) {
  const mask = new Uint8Array(samples.length).fill(1);
  const keep = (column, takes) => {
    if (column) for (let row = 0; row < mask.length; row++) if (mask[row] && !takes(column[row])) mask[row] = 0;
  };
  const between = (column, range) => range && keep(column, (value) => value >= range[0] - 5e-4 && value <= range[1] + 5e-4);
  if (shown.truth !== "") keep(samples.state, (state) => state === Number(shown.truth));
  if (shown.answer !== "") keep(samples.predicted_state, (state) => state === Number(shown.answer));
  if (shown.rank !== "") {
    const ranks = new Set(shown.rank.split(",").map(Number));
    keep(samples.rank, (rank) => ranks.has(rank));
  }
  if (shown.agrees !== "") keep(samples.agrees, (agrees) => agrees === ({ yes: 1, no: 0 }[shown.agrees] ?? UNKNOWN));
  between(samples.score, shown.score);
  between(samples.confidence, shown.confidence);
  for (const [shape, positions] of [[shown.area, onMap], [shown.zone, inSpace]])
    if (shape && positions)
      for (let row = 0; row < mask.length; row++) if (mask[row] && !inside(shape, positions[2 * row], positions[2 * row + 1])) mask[row] = 0;
  return mask;
}

// Count, score by the competition's formula, top-1, top-5, median km and mean confidence of the samples in a mask.
export function measure(samples, mask, competition) {
  const { rank, km, confidence } = samples;
  const credits = competition?.rank_credit ?? [1];
  let count = 0, first = 0, five = 0, credit = 0, distance = 0, sure = 0;
  const distances = km ? new Float32Array(mask.length) : null;
  for (let row = 0; row < mask.length; row++) {
    if (!mask[row]) continue;
    if (km) distances[count] = km[row], distance += km[row];
    if (rank) first += rank[row] === 1, five += rank[row] > 0, credit += rank[row] > 0 ? credits[rank[row] - 1] ?? 0 : 0;
    if (confidence) sure += confidence[row];
    count++;
  }
  const nothing = !count || !km || !rank;
  const gps = Math.max(0, 1 - distance / count / (competition?.gps_range_km ?? 5000));
  return {
    count,
    score: nothing ? null : competition.state_weight * (credit / count) + competition.gps_weight * gps,
    top1: nothing ? null : first / count,
    top5: nothing ? null : five / count,
    median: nothing ? null : median(distances.subarray(0, count)),
    confidence: count && confidence ? sure / count : null,
  };
}

function median(values) {
  const middle = values.length >> 1;
  const upper = ranked(values, middle);
  if (values.length % 2) return upper;
  let lower = -Infinity;
  for (let k = 0; k < middle; k++) if (values[k] > lower) lower = values[k];
  return (lower + upper) / 2;
}

// The value of a rank from 0; what is less ends up before it (Hoare, CACM 1961).
function ranked(values, rank) {
  let [low, high] = [0, values.length - 1];
  while (low < high) {
    const pivot = values[(low + high) >> 1];
    let [i, j] = [low, high];
    while (i <= j) {
      while (values[i] < pivot) i++;
      while (values[j] > pivot) j--;
      if (i > j) break;
      const kept = values[i];
      values[i++] = values[j];
      values[j--] = kept;
    }
    if (rank <= j) high = j;
    else if (rank >= i) low = i;
    else break;
  }
  return values[rank];
}

// Rows in the order of a column, ascending, what isn't a number last; made once for each column.
export function ordered(samples, name) {
  samples.orders ??= new Map();
  if (!samples.orders.has(name)) {
    const column = name === "id" ? null : samples[name];
    const rows = Uint32Array.from({ length: samples.length }, (_, row) => row);
    if (column) {
      const key = Float64Array.from(column, (value) => (Number.isFinite(value) ? value : Infinity));
      rows.sort((a, b) => key[a] - key[b] || a - b);
    }
    samples.orders.set(name, rows);
  }
  return samples.orders.get(name);
}
