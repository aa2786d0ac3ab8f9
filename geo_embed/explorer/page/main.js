// The explorer's page: what is shown follows from the address, what a person does changes the address.
import { hash, onShow, show, shown } from "./address.js";
import { problem, sentence } from "./answer.js";
import { KINDS, binsOf, bytesFor, kindsOf, legendOf, onScheme } from "./colours.js";
import { UNKNOWN, getJson, getSamples, measure, select } from "./data.js";
import { choices, h, legend } from "./elements.js";
import { makeFilters } from "./filters.js";
import { count, km, percent, plural, score } from "./format.js";
import { makeList } from "./list.js";
import { makeMap } from "./map.js";
import { makeGame, newSeed } from "./play.js";
import { getSample, sampleFrame } from "./sample.js";
import { scatter, svg } from "./scatter.js";
import { makeTrial } from "./trial.js";

const MODES = { map: "Explore", try: "Try it", play: "Play" };
const SELECTING = ["truth", "answer", "rank", "agrees", "score", "confidence", "area", "zone"];
const SPACE = 1000;

const find = (id) => document.getElementById(id);
const app = find("app");
const tell = (text) => (find("news").textContent = text);

// `run` is what there is to say of it and of the split that is shown; `home` the split of an address that names none.
let run, home, outlines, samples, names;
let map, space, filters, list, trial, game, frame, opener;
let places, spots, mask, bins;
// A camera that moves because of the address isn't written into it again.
let steering = false;
let listing = 0;

const numbers = h("dl", { class: "numbers", "aria-label": "Of the selected samples" });
const said = h("p", { class: "empty", hidden: true });
const overview = h("div", { class: "overview" });
const detail = h("div", { class: "detail" });
const bar = h("div", { class: "toolbar" });
const key = h("div", { class: "key-of-points" });
const below = h("p", { class: "below" });

begin().catch(fail);

async function begin() {
  // The token beyond this machine has become a cookie: nobody needs to see or copy it.
  if (new URLSearchParams(location.search).has("token")) history.replaceState(null, "", `${location.pathname}${location.hash}`);
  const drawn = getJson("/api/outlines");
  drawn.catch(() => {});
  run = await getJson("/api/run");
  home = run.split;
  document.title = `${run.run} · geo explore`;
  find("run").textContent = run.run;
  // An address may name a split that this run doesn't have.
  if (!run.splits.includes(shown.split)) shown.split = "";
  if (split() !== home) run = await getAbout(split());
  [samples, outlines] = await Promise.all([getSamples(split(), run.compare), drawn]);
  names = new Map(run.classes.map((item) => [item.index, item.name]));
  map = makeMap(outlines, samples, {
    pick: (row) => open(samples.ids[row]),
    hover: (row) => space.ring(row),
    describe,
    point: (x, y) => game.put(x, y),
    key: (event) => {
      if (shown.mode === "play") return game.key(event);
      // The last thing that was opened is the first to be closed.
      if (event.key !== "Escape" || !shown.sample) return false;
      close();
      return true;
    },
    brush: (shape) => show({ area: shapeOf(shape) }),
    moved: ({ zoom, x, y }) => steering || show({ at: zoom === 1 && x === 0.5 && y === 0.5 ? null : [zoom, x, y].map((value) => +value.toFixed(5)) }),
  });
  space = makeSpace();
  trial = makeTrial(run, { marks: markTrial, point: pointAt, tell });
  game = makeGame(run, map, { tell });
  find("map").replaceChildren(bar, map.element, key, below);
  find("panel").replaceChildren(numbers, said, overview, detail, trial.element, game.element);
  fillSplits();
  useSamples();
  steer();
  onShow(later);
  update(new Set(Object.keys(shown)), true);
  listen();
  requestAnimationFrame(() =>
    requestAnimationFrame(() => {
      performance.mark("points");
      document.documentElement.dataset.shown = "yes";
      document.documentElement.dataset.layer = map.kind();
    })
  );
}

function fail(failure) {
  find("problem").replaceChildren(problem(failure, () => location.reload()));
  find("map").querySelector(".waiting")?.remove();
  document.documentElement.dataset.shown = "failed";
  if (!failure.hint && failure.name !== "Error") throw failure;
}

const split = () => shown.split || home;
const getAbout = (of) => getJson(`/api/run?${new URLSearchParams({ split: of })}`);
const shapeOf = (shape) => (shape && (shape.length > 4 || shape[0] !== shape[2] || shape[1] !== shape[3]) ? shape.map((x) => +x.toFixed(1)) : null);

// What depends on the split's samples.
function useSamples() {
  spots = spotsOf(samples);
  space?.setPlaces(spots, [-40, -40, SPACE + 40, SPACE + 40]);
  filters = makeFilters(run, samples);
  find("filters").replaceChildren(filters.element);
  list = makeList(run, samples, (row) => open(samples.ids[row]));
  const embedding = h("figure", { class: "space" }, h("figcaption", { class: "between" }, h("h2", {}, "Embedding"), space.tools), space.element, h("p", { class: "below" }, `The two main directions${run.embedding_view ? ` of the ${run.embedding_view}` : ""}: what lies together looks alike to the model.`));
  overview.replaceChildren(embedding, list.element);
  narrow();
  const kinds = kindsOf(samples);
  const colour = h("select", {}, kinds.map((kind) => h("option", { value: kind }, KINDS[kind])));
  colour.addEventListener("change", () => show({ colour: colour.value }));
  bar.replaceChildren(h("label", { class: "field" }, h("span", {}, "Colour"), colour));
  if (samples.latitude) {
    const where = choices("Points at", { true: "true place", predicted: "predicted" }, (place) => show({ place }));
    for (const input of where.querySelectorAll("input")) input.checked = input.value === shown.place;
    bar.append(where);
  }
  bar.append(map.tools);
  bar.querySelector("select").value = colourKind();
  said.hidden = Boolean(samples.km);
  said.textContent = `The truth of the ${split()} samples isn't known here, so they have no score, distance or rank.`;
}

const colourKind = () => {
  const kinds = kindsOf(samples);
  return kinds.includes(shown.colour) ? shown.colour : kinds[0];
};

function spotsOf({ x, y, length }) {
  const found = new Float32Array(2 * length);
  if (!x || !length) return found;
  let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
  for (let row = 0; row < length; row++) {
    if (!Number.isFinite(x[row]) || !Number.isFinite(y[row])) continue;
    [left, right] = [Math.min(left, x[row]), Math.max(right, x[row])];
    [top, bottom] = [Math.min(top, -y[row]), Math.max(bottom, -y[row])];
  }
  const [across, down] = [SPACE / (right - left || 1), SPACE / (bottom - top || 1)];
  for (let row = 0; row < length; row++) {
    found[2 * row] = (x[row] - left) * across;
    found[2 * row + 1] = bottom > top ? (-y[row] - top) * down : SPACE / 2;
  }
  return found;
}

function makeSpace() {
  let over = -1;
  const made = scatter({
    label: "Embedding",
    help: "Arrow keys move, plus and minus zoom, 0 shows all, V selects what is in view, Enter opens the sample nearest to the middle, Escape ends the selection.",
    pick: (row) => open(samples.ids[row]),
    hover: (row) => map.ring(row < 0 ? null : [places[2 * row], places[2 * row + 1]]),
    describe,
    brush: (shape) => show({ zone: shapeOf(shape) }),
    above(into, at) {
      for (const [row, name] of [[samples.rowOf.get(shown.sample) ?? -1, "truth"], [over, "ring"]]) {
        if (row < 0) continue;
        const [x, y] = at(spots[2 * row], spots[2 * row + 1]);
        into.push(svg("circle", { class: name, cx: x, cy: y, r: 7 }));
      }
    },
  });
  return Object.assign(made, {
    ring(row) {
      over = row;
      made.remark();
    },
  });
}

function describe(row) {
  const [truth, answer] = [names.get(samples.state?.[row]), names.get(samples.predicted_state[row])];
  return [
    `Sample ${samples.ids[row]}`,
    truth ? (truth === answer ? `${truth}, rightly` : `${truth}, taken for ${answer}`) : answer,
    [samples.km && `${km(samples.km[row])} off`, `confidence ${percent(samples.confidence[row])}`].filter(Boolean).join(", "),
  ].map((line) => line ?? "");
}

// Many changes between two frames are one update.
let waiting = null;
function later(changed) {
  if (waiting) return changed.forEach((name) => waiting.add(name));
  waiting = new Set(changed);
  requestAnimationFrame(() => {
    const all = waiting;
    waiting = null;
    update(all);
  });
}

async function update(changed, first = false) {
  if (changed.has("split") && !first) {
    if (!run.splits.includes(split())) return show({ split: "" });
    const asked = split();
    try {
      const about = await getAbout(asked);
      const found = await getSamples(asked, about.compare);
      // Another split was chosen meanwhile.
      if (asked !== split()) return;
      [run, samples] = [about, found];
    } catch (failure) {
      return fail(failure);
    }
    useSamples();
    fillSplits();
    changed = new Set(Object.keys(shown));
  }
  const has = (...keys) => keys.some((name) => changed.has(name));
  const points = has("mode", "place", "split");
  if (points) {
    places = map.placesOf(samples, shown.place === "predicted");
    map.setPlaces(shown.mode === "map" ? places : new Float32Array(0), map.extent());
    credit();
  }
  const selecting = has("split", "place", ...SELECTING);
  if (selecting) mask = select(samples, shown, places, spots);
  if (has("split", "colour")) {
    bins = binsOf(colourKind(), samples, run);
    bar.querySelector("select").value = colourKind();
  }
  if (points || selecting || has("colour", "sample")) paint();
  if (selecting) {
    for (const input of bar.querySelectorAll("input[type=radio]")) input.checked = input.value === (shown.place === "predicted" ? "predicted" : "true");
    filters.update(mask);
    fillNumbers();
    map.setShape(shown.mode === "map" ? shown.area : null);
    space.setShape(shown.zone);
  }
  // A list of many is sorted when the hand rests, not with each of its moves.
  clearTimeout(listing);
  if (first || has("sort", "split", "sample")) list.update(mask);
  else if (selecting) listing = setTimeout(() => list.update(mask), 60);
  if (has("mode")) useMode(first);
  else if (has("seed") && shown.mode === "play") deal();
  if (has("sample", "split", "mode") && shown.mode === "map") openSample(first);
  if (has("at")) steer();
  for (const link of document.querySelectorAll("#modes a")) link.href = hash({ mode: link.dataset.mode, sample: "" });
}

function credit() {
  let lost = 0;
  for (let row = 0; row < places.length; row += 2) lost += !Number.isFinite(places[row]);
  const owed = outlines.credit ? sentence(outlines.credit) : "";
  const beyond = lost && shown.mode === "map" ? `${plural(lost, "place lies", "places lie")} beyond this map and ${lost === 1 ? "isn't" : "aren't"} shown.` : "";
  below.textContent = [beyond, owed].filter(Boolean).join(" ");
}

function paint() {
  const faded = shown.mode === "map" && shown.sample !== "";
  if (shown.mode === "map") map.setColours(bytesFor(bins, mask, faded), mask, bins.level);
  else map.setColours(new Uint8Array(0), new Uint8Array(0));
  space.setColours(bytesFor(bins, mask, false), mask, bins.level);
  const entries = legendOf(bins, mask);
  key.replaceChildren(entries.length ? legend(entries.map(([name, colour, n]) => [`${name} · ${n}`, colour])) : h("p", { class: "below" }, "Each class has one of six hues, its neighbours another."));
}

function fillNumbers() {
  samples.all ??= measure(samples, new Uint8Array(samples.length).fill(1), run.competition);
  const [now, all] = [measure(samples, mask, run.competition), samples.all];
  const part = now.count < all.count;
  const tile = (name, value, whole, main) => h("div", { class: main }, h("dt", {}, name), h("dd", {}, value, h("span", { class: "of-all" }, whole)));
  const ofAll = (text) => (part ? `all: ${text}` : "");
  const [low, high] = run.interval ?? [];
  const range = !part && Number.isFinite(low) ? `${low.toFixed(3)} to ${high.toFixed(3)}` : "";
  numbers.replaceChildren(
    ...[
      tile("Samples", count(now.count), part ? `of ${count(all.count)}` : "all", "half"),
      samples.km && tile("Score", score(now.score), ofAll(score(all.score)) || range, "half main"),
      samples.km && tile("Top-1", percent(now.top1), ofAll(percent(all.top1))),
      samples.km && tile("Top-5", percent(now.top5), ofAll(percent(all.top5))),
      samples.km && tile("Median", km(now.median), ofAll(km(all.median))),
      !samples.km && tile("Mean confidence", percent(now.confidence), ofAll(percent(all.confidence)), "half"),
    ].filter(Boolean)
  );
}

function fillSplits() {
  find("modes").replaceChildren(
    ...Object.entries(MODES).map(([mode, name]) => h("li", {}, h("a", { href: hash({ mode, sample: "" }), "data-mode": mode, "aria-current": mode === shown.mode ? "page" : null }, name)))
  );
  if (run.splits.length < 2) return;
  const choice = h("select", {}, run.splits.map((name) => h("option", { value: name, selected: name === split() }, { val: "held-out (val)", test: "test", train: "train" }[name] ?? name)));
  choice.addEventListener("change", () => show({ split: choice.value === home ? "" : choice.value, sample: "", area: null, zone: null, truth: "", answer: "", rank: "", agrees: "", score: null, confidence: null }));
  find("splits").replaceChildren(h("label", { class: "field" }, h("span", {}, "Samples"), choice));
}

function useMode(first) {
  const { mode } = shown;
  app.dataset.mode = mode;
  for (const link of document.querySelectorAll("#modes a")) {
    if (link.dataset.mode === mode) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const part of [find("filters"), find("splits"), numbers, bar, key]) part.hidden = mode !== "map";
  said.hidden = mode !== "map" || Boolean(samples.km);
  trial.element.hidden = mode !== "try";
  game.element.hidden = mode !== "play";
  overview.hidden = detail.hidden = mode !== "map";
  find("panel").setAttribute("aria-label", { map: "Selection", try: "Your pictures", play: "Game" }[mode]);
  map.plane.classList.toggle("placing", mode === "play");
  map.pointing = false;
  map.selecting = mode === "map";
  map.setShape(mode === "map" ? shown.area : null);
  map.mark({});
  if (mode === "play") deal();
  if (mode === "try") trial.again();
  if (!first) ({ try: trial, play: game })[mode]?.focus();
}

// The game that the address names, or a new one where it names none that there is.
function deal() {
  if (!/^\d{1,15}$/.test(shown.seed)) {
    shown.seed = newSeed();
    history.replaceState(null, "", hash());
  }
  game.begin(shown.seed);
}

// Only the wide page has room for filters that are always open.
function narrow() {
  const wide = matchMedia("(min-width: 68rem)");
  const fit = () => (find("filters").querySelector("details").open = wide.matches);
  fit();
  wide.onchange = fit;
}

function steer() {
  const [zoom, x, y] = shown.at ?? [1, 0.5, 0.5];
  const { camera } = map;
  if (Math.abs(camera.zoom - zoom) + Math.abs(camera.x - x) + Math.abs(camera.y - y) < 1e-4) return;
  steering = true;
  map.moveTo(zoom, x, y);
  steering = false;
}

function open(id) {
  if (!shown.sample) opener = document.activeElement;
  show({ sample: id });
}

function close() {
  show({ sample: "" });
}

const step = (by) => {
  const next = list.beside(shown.sample, by);
  if (next !== null) show({ sample: next });
};

function pointAt(place) {
  map.ring(place ? map.project(place) : null);
}

async function openSample(first) {
  const id = shown.sample;
  overview.hidden = id !== "";
  space.remark();
  if (!id) {
    const was = frame;
    frame = null;
    detail.replaceChildren();
    map.mark({});
    list.draw();
    if (was) (opener?.isConnected && opener !== document.body ? opener : list).focus();
    return;
  }
  const mine = (frame = sampleFrame(id, list.place(id), { close, step, point: pointAt, open, has: (of, other) => of === split() && samples.rowOf.has(other) }));
  detail.replaceChildren(mine.element);
  if (!first) mine.focus();
  find("panel").scrollTop = 0;
  const row = samples.rowOf.get(id);
  const known = (latitude, longitude) => row !== undefined && latitude && map.project({ latitude: latitude[row], longitude: longitude[row] });
  const marks = { truth: known(samples.latitude, samples.longitude), prediction: known(samples.predicted_latitude, samples.predicted_longitude) };
  map.mark(marks);
  if (!first || !shown.at) map.flyTo([marks.truth, marks.prediction].filter(Boolean), 1, 6);
  try {
    const found = await getSample(split(), id);
    if (frame !== mine) return;
    const seen = Number.isFinite(map.project(found.prediction)[0]);
    mine.fill(found, run, { beyond: !seen, beside: samples.agrees && row !== undefined && besideOf(row) });
    map.mark({ truth: map.project(found.truth), prediction: map.project(found.prediction), near: found.neighbours?.map((near) => map.project(near)), heat: map.heat(found.distribution, run.classes.length) });
    tell(`Sample ${id}: ${found.truth ? `${found.truth.name}, ` : ""}predicted ${found.prediction.top[0]?.name}`);
  } catch (failure) {
    if (frame === mine) mine.fail(failure, () => openSample(false));
  }
}

// What the other run says of a sample.
function besideOf(row) {
  if (samples.agrees[row] === UNKNOWN) return "no answer to this sample";
  const away = Number.isFinite(samples.compare_km?.[row]) ? `, ${km(samples.compare_km[row])} off` : "";
  return `${samples.agrees[row] ? "the same class" : "another class"}${away}`;
}

function markTrial(found) {
  if (shown.mode !== "try") return;
  if (!found) return map.mark({});
  const marks = { truth: found.truth && map.project(found.truth), prediction: map.project(found.prediction), near: found.neighbours?.map((near) => map.project(near)), heat: map.heat(found.distribution, run.classes.length) };
  map.mark(marks);
  map.flyTo([marks.truth, marks.prediction].filter(Boolean), 1, 2.2);
}

function listen() {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    if (shown.mode !== "map" || !shown.sample) return;
    const act = { escape: close, n: () => step(1), p: () => step(-1) }[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  });
  for (const type of ["dragover", "drop"]) {
    document.addEventListener(type, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      document.body.classList.toggle("dropping", type === "dragover");
      if (type === "dragover") return;
      const files = [...event.dataTransfer.files];
      show({ mode: "try", sample: "" });
      trial.take(files);
    });
  }
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && document.body.classList.remove("dropping"));
  find("modes").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show({ mode: link.dataset.mode, sample: "", seed: link.dataset.mode === "play" ? newSeed() : shown.seed });
  });
  onScheme(() => {
    map.recolour();
    bins = binsOf(colourKind(), samples, run);
    paint();
  });
}
