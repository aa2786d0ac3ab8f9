// The map: the region's outlines below the points, and above them where the chosen sample is and where it was put.
import { geoAlbersUsa, geoConicEqualArea, geoEqualEarth, geoPath } from "./vendor/explore.min.js";
import { variable } from "./colours.js";
import { scatter, svg } from "./scatter.js";

const WIDE = 1000;
// On the plane, what may be left out of an outline at zoom 1 and seen from near.
const COARSE = 0.45, FINE = 0.04, NEAR = 4;

// How places go to the plane and back, the plane's extent, and outlines as paths.
export function atlas(outlines, samples) {
  const wound = outlines.features.map((feature) => feature.rings.map(clockwise));
  const places = wound.flat(2);
  for (const [latitude, longitude] of [[samples.latitude, samples.longitude], [samples.predicted_latitude, samples.predicted_longitude]])
    if (latitude && !places.length) for (let row = 0; row < latitude.length; row++) places.push([longitude[row], latitude[row]]);
  const projection = projectionFor(outlines, places.length ? places : [[-180, -60], [180, 75]]);
  const pathsOf = (rings, least) => {
    const pen = thinning(least);
    for (const ring of rings) geoPath(projection, pen)({ type: "Polygon", coordinates: [ring] });
    return pen.path;
  };
  const context = (outlines.context ?? []).map(clockwise);
  const levels = [COARSE, FINE].map((least) => {
    const classes = wound.map((rings) => pathsOf(rings, least));
    return { classes, context: pathsOf(context, least) };
  });
  const [[left, top], [right, bottom]] = geoPath(projection).bounds({ type: "MultiPoint", coordinates: places.length ? places : [[0, 0]] });
  const extent = outlines.projection === "albers-usa" ? [0, 0, WIDE, 0.6 * WIDE] : [left, top, right, bottom];
  // The Aleutians reach further west than the rest.
  const margin = outlines.projection === "albers-usa" ? 48 : 20;
  return {
    levels,
    extent: [extent[0] - margin, extent[1] - 12, extent[2] + 20, extent[3] + 12],
    project: (longitude, latitude) => (Number.isFinite(latitude) && Number.isFinite(longitude) && projection([longitude, latitude])) || [NaN, NaN],
    invert: (x, y) => projection.invert([x, y]),
  };
}

function projectionFor({ projection: name, parallels, longitude = 0, latitude = 0 }, places) {
  const all = { type: "MultiPoint", coordinates: places };
  if (name === "albers-usa") return geoAlbersUsa().scale(1.286 * WIDE).translate([WIDE / 2, 0.3 * WIDE]);
  if (name === "equal-earth") return geoEqualEarth().rotate([-longitude, 0]).fitWidth(WIDE, all);
  // d3's conic projection has no cone where both parallels are the same.
  const [south, north] = parallels;
  return geoConicEqualArea().parallels([south, north + 1e-4]).rotate([-longitude, 0]).center([0, latitude]).fitExtent([[0, 0], [WIDE, 0.75 * WIDE]], all);
}

// d3 takes for the inside what lies to the right of a ring.
function clockwise(ring) {
  let area = 0;
  for (let k = 1; k < ring.length; k++) area += ring[k - 1][0] * ring[k][1] - ring[k][0] * ring[k - 1][1];
  return area > 0 ? [...ring].reverse() : ring;
}

// A path that leaves out corners nearer than `least` to the one before.
function thinning(least) {
  const path = new Path2D();
  let [x, y] = [NaN, NaN];
  return {
    path,
    moveTo: (a, b) => ([x, y] = [a, b], path.moveTo(a, b)),
    lineTo(a, b) {
      if (Math.abs(a - x) + Math.abs(b - y) < least) return;
      [x, y] = [a, b];
      path.lineTo(a, b);
    },
    closePath: () => path.closePath(),
    arc: () => {},
  };
}

export function makeMap(outlines, samples, calls) {
  let drawn = atlas(outlines, samples);
  // What is shown of a sample: {truth: [x, y], prediction, person, near: [[x, y], …], heat}; or of several: {rounds}.
  let marks = {};
  let colours = null;
  const map = scatter({
    label: "Map",
    help: "Arrow keys move, plus and minus zoom, 0 shows all, V selects what is in view, Enter opens the sample nearest to the middle, Escape ends the selection.",
    ground(pen, { scale }) {
      colours ??= Object.fromEntries(["--land", "--line", "--panel", "--muted", "--a"].map((name) => [name, variable(name)]));
      const level = drawn.levels[map.camera.zoom > NEAR ? 1 : 0];
      pen.lineJoin = "round";
      // What is painted over the land shows where land is, as strongly as it is opaque.
      if (marks.heat?.cells) {
        pen.fillStyle = colours["--panel"];
        pen.fill(level.context, "evenodd");
      }
      pen.strokeStyle = colours["--line"];
      pen.lineWidth = 0.8 / scale;
      pen.globalAlpha = 0.6;
      pen.fillStyle = colours["--land"];
      pen.fill(level.context, "evenodd");
      pen.globalAlpha = 1;
      pen.strokeStyle = colours["--muted"];
      for (const [k, path] of level.classes.entries()) {
        const share = marks.heat?.classes?.[k] ?? 0;
        pen.fillStyle = colours["--land"];
        pen.fill(path, "evenodd");
        if (share > 0.03) {
          pen.globalAlpha = 0.05 + 0.85 * share;
          pen.fillStyle = colours["--a"];
          pen.fill(path, "evenodd");
          pen.globalAlpha = 1;
        }
      }
      if (marks.heat?.cells) {
        // Nothing is predicted at sea. Areas may overlap, so that no path has them all.
        pen.globalCompositeOperation = "source-atop";
        cells(pen, marks.heat.cells, colours["--a"]);
        pen.globalCompositeOperation = "source-over";
      }
      pen.globalAlpha = 0.55;
      pen.lineWidth = 0.7 / scale;
      for (const path of level.classes) pen.stroke(path);
      pen.globalAlpha = 1;
    },
    above(into, at) {
      const place = (point) => point && Number.isFinite(point[0]) && at(...point);
      for (const near of marks.near ?? []) {
        const here = place(near);
        if (here) into.push(svg("circle", { class: "near", cx: here[0], cy: here[1], r: 4 }));
      }
      for (const round of marks.rounds ?? [marks]) {
        const [truth, prediction, person] = [place(round.truth), place(round.prediction), place(round.person)];
        const line = (to, kind) => truth && to && into.push(svg("path", { class: `link ${kind}`, d: `M${truth}L${to}` }));
        line(prediction, "model");
        line(person, "person");
        if (truth) into.push(svg("circle", { class: "truth", cx: truth[0], cy: truth[1], r: 6.5 }));
        if (prediction) into.push(svg("path", { class: "prediction", d: `M${prediction[0]} ${prediction[1] - 8}l8 8l-8 8l-8 -8Z` }));
        if (person) into.push(svg("path", { class: "pin", d: `M${person}c-2.5 -6 -8 -9 -8 -14.5a8 8 0 0 1 16 0c0 5.5 -5.5 8.5 -8 14.5Z` }));
      }
      const ring = place(marks.ring);
      if (ring) into.push(svg("circle", { class: "ring", cx: ring[0], cy: ring[1], r: 8 }));
    },
    ...calls,
  });

  return Object.assign(map, {
    // Positions (2N) of a split's samples: the true places, or the predicted.
    placesOf(of, predicted) {
      const [latitude, longitude] = predicted || !of.latitude ? [of.predicted_latitude, of.predicted_longitude] : [of.latitude, of.longitude];
      const places = new Float32Array(2 * of.length);
      for (let row = 0; row < of.length; row++) places.set(drawn.project(longitude[row], latitude[row]), 2 * row);
      return places;
    },
    extent: () => drawn.extent,
    project: (place) => (place ? drawn.project(place.longitude, place.latitude) : null),
    // Longitude and latitude of a place of the plane, or null where there is none.
    invert(x, y) {
      const place = drawn.invert(x, y);
      return place && place.every(Number.isFinite) && Math.abs(place[1]) <= 90 ? place : null;
    },
    // Which class's outline holds a place of the plane, -1 where none does.
    classAt(x, y) {
      const pen = document.createElement("canvas").getContext("2d");
      return drawn.levels[1].classes.findIndex((path) => pen.isPointInPath(path, x, y, "evenodd"));
    },
    setOutlines(given, of) {
      drawn = atlas(given, of);
    },
    mark(given) {
      // Only a heat map lies below the points.
      const below = marks.heat || given.heat;
      marks = given;
      if (below) map.redraw();
      else map.remark();
    },
    ring(place) {
      marks.ring = place;
      map.remark();
    },
    recolour() {
      colours = null;
      map.redraw();
    },
    // What a distribution is on the plane: shares of the largest, by class or at cells.
    heat(distribution, classes) {
      if (!distribution?.probability?.length) return null;
      const most = Math.max(...distribution.probability);
      const shares = distribution.probability.map((p) => (p / most) ** 0.65);
      if (distribution.state && outlines.features.some((feature) => feature.rings.length)) {
        const found = new Array(classes).fill(0);
        for (const [k, state] of distribution.state.entries()) found[state] = shares[k];
        return { classes: found };
      }
      const found = shares.map((share, k) => [...drawn.project(distribution.longitude[k], distribution.latitude[k]), share]);
      return { cells: { found: found.filter(([x, , share]) => Number.isFinite(x) && share > 0.05), reach: reachOf(found) } };
    },
  });
}

// How far a cell reaches: what lies between it and its nearest neighbour, as a rule.
function reachOf(found) {
  const some = found.filter(([x]) => Number.isFinite(x)).filter((_, k, all) => k % Math.ceil(all.length / 200) === 0);
  const gaps = some.map(([x, y], k) => {
    let least = Infinity;
    for (const [j, [a, b]] of found.entries()) {
      const away = Math.hypot(a - x, b - y);
      if (away > 1e-6 && away < least && j !== k) least = away;
    }
    return least;
  });
  gaps.sort((a, b) => a - b);
  return Math.min(60, Math.max(3, 1.4 * (gaps[gaps.length >> 1] || 12)));
}

function cells(pen, { found, reach }, colour) {
  for (const [x, y, share] of found) {
    const blot = pen.createRadialGradient(x, y, 0, x, y, reach);
    blot.addColorStop(0, colour);
    blot.addColorStop(1, `${colour}00`);
    pen.globalAlpha = 0.85 * share;
    pen.fillStyle = blot;
    pen.fillRect(x - reach, y - reach, 2 * reach, 2 * reach);
  }
  pen.globalAlpha = 1;
}
