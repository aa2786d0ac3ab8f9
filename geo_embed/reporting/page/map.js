// Where: from the true to the predicted place, over the classes' outlines and how often each is right.
import { count, km, percent, plural } from "./format.js";
import { choices, figure, grid, legend, missing, section, tableBehind } from "./elements.js";
import { TIP, chart, dot, geo, lines, pointer, shade, tip } from "./chart.js";

const FAR_KM = 750;
const FILTERS = {
  all: ["All samples", () => true],
  wrong: ["Wrong class", (point) => !point.right],
  far: [`More than ${FAR_KM} km off`, (point) => point.km > FAR_KM],
};

export function mapSection(report) {
  const several = report.runs.length > 1;
  const figures = report.runs.map((run) => {
    const title = several ? `Map: ${run.name}` : "From the true to the predicted place";
    return run.map.missing ? missing(title, run.map.missing) : mapFigure(run, title, several);
  });
  return section("map", "Map", "A dot is a true place; its line ends where the point was predicted.", grid(...figures));
}

function mapFigure(run, title, several) {
  const found = run.map;
  const points = found.points.map(([id, label, answer, away, confidence, path]) => ({
    id,
    state: run.names[label],
    answer: run.names[answer],
    right: label === answer,
    km: away,
    confidence,
    x: path[0][0][0],
    y: path[0][0][1],
    journey: { type: "MultiLineString", coordinates: path },
  }));
  const areas = found.classes
    .map((rings, k) => ({ type: "Polygon", coordinates: rings, row: run.classes[k], k }))
    .filter((area) => area.coordinates.length);
  const hover = (point) => lines(`sample ${point.id}`, `true: ${point.state}`, `predicted: ${point.answer} (${percent(point.confidence)})`, `${km(point.km)} off`);
  const sheet = { type: "Polygon", coordinates: [[[0, 0], [found.width, 0], [found.width, found.height], [0, found.height], [0, 0]]] };
  let kept = points;
  const build = (width) => ({
    width,
    height: Math.round((width * found.height) / found.width),
    margin: 0,
    marginTop: 0,
    marginRight: 0,
    marginBottom: 0,
    className: "map",
    projection: { type: "identity", domain: sheet, clip: "frame" },
    marks: [
      geo([{ type: "Polygon", coordinates: found.context }], { fill: "var(--land)", stroke: "var(--line)", strokeWidth: 0.6 }),
      geo(areas, { fill: (area) => (area.row.samples ? shade(0.1 + 0.6 * area.row.top1) : "var(--panel)"), stroke: (area) => (area.row.samples ? "var(--border)" : "var(--muted)"), strokeWidth: (area) => (area.row.samples ? 0.8 : 0.4) }),
      geo(kept, { geometry: "journey", stroke: (point) => (point.right ? "var(--ink)" : "var(--b)"), strokeOpacity: kept.length > 400 ? 0.35 : 0.6, strokeWidth: 1.1 }),
      dot(kept, { x: "x", y: "y", r: kept.length > 400 ? 1.8 : 2.6, fill: (point) => (point.right ? "var(--ink)" : "var(--b)"), stroke: "var(--panel)", strokeWidth: 0.5 }),
      tip(kept, pointer({ ...TIP, x: "x", y: "y", title: hover, maxRadius: 30 })),
    ],
  });
  const drawing = chart(`Map of ${plural(points.length, "sample")}, from the true to the predicted place. The table below says how often each class is right.`, build);
  const said = [];
  if (found.shown < found.of) said.push(`${count(found.shown)} of ${count(found.of)} samples, spread evenly over all errors.`);
  if (found.outside) said.push(`${plural(found.outside, "sample is", "samples are")} not shown: the true or the predicted place lies beyond the map.`);
  said.push(`${found.credit[0].toUpperCase()}${found.credit.slice(1)}.`);
  return figure({
    title,
    wide: !several,
    below: said.join(" "),
    controls: choices(
      "Show",
      Object.fromEntries(Object.entries(FILTERS).map(([key, [name]]) => [key, name])),
      (key) => {
        kept = points.filter(FILTERS[key][1]);
        drawing.refresh();
      }
    ),
    legend: legend([
      ["class right", "var(--ink)"],
      ["class wrong", "var(--b)"],
      ["top-1 accuracy 0 %", shade(0.1), "bar"],
      ["100 %", shade(0.7), "bar"],
      ["no samples", "var(--panel)", "bar"],
    ]),
    chart: drawing,
    numbers: tableBehind(
      "Accuracy of each class",
      [
        { name: "Class", value: (row) => row.state },
        { name: "Samples", number: true, value: (row) => count(row.samples) },
        { name: "Top-1", number: true, value: (row) => percent(row.top1) },
        { name: "Top-5", number: true, value: (row) => percent(row.top5) },
        { name: "Precision", number: true, value: (row) => percent(row.precision) },
        { name: "Median error", number: true, value: (row) => km(row.median_km) },
      ],
      run.classes
    ),
  });
}
