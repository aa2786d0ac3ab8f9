// How the training went: curves by epoch, the trials of a race, or the members of an ensemble.
import { percent, score, short } from "./format.js";
import { figure, grid, legend, missing, section, tableBehind } from "./elements.js";
import { HUES, TIP, chart, dot, gridX, gridY, line, lines, pointer, tip } from "./chart.js";

export function trainingSection(report) {
  const several = report.runs.length > 1;
  const figures = report.runs.flatMap((run) => {
    const title = (name) => (several ? `${name}: ${run.name}` : name);
    const found = run.training;
    if (found.missing) return [missing(title("Training"), found.missing)];
    if (found.kind === "epochs") return found.curves.map((curve) => curveFigure(title(curve.name), curve));
    if (found.kind === "race") return [ranking(title("Variants that raced"), found.trials, "Each was scored inside the training samples; the held-out ones chose nothing.")];
    return [members(title("Members"), found)];
  });
  return section("training", "Training", null, grid(...figures));
}

function curveFigure(title, curve) {
  const names = [...new Set(curve.series.map((series) => series.name))];
  const points = curve.series.flatMap((series) => series.points.map(([epoch, value]) => ({ epoch, value, name: series.name, part: series.part, z: `${series.name} ${series.part}` })));
  const hue = (point) => HUES[names.indexOf(point.name)];
  const text = curve.key === "rate" ? (x) => x.toExponential(1) : (x) => x.toFixed(4);
  const epochs = [...new Set(points.map((point) => point.epoch))];
  const build = (width) => ({
    width,
    height: 240,
    marginLeft: 56,
    x: { label: "epoch", ticks: epochs.length <= 8 ? epochs : width / 70, tickFormat: "d" },
    y: { label: null, zero: curve.key === "rate", nice: true, ticks: 5, tickFormat: curve.key === "rate" ? "~e" : undefined },
    marks: [
      gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: 5 }),
      line(points, { x: "epoch", y: "value", z: "z", stroke: hue, strokeWidth: 2, strokeOpacity: curve.series.length > 6 ? 0.5 : 1 }),
      dot(points, { x: "epoch", y: "value", r: epochs.length > 40 ? 0 : 3, fill: hue }),
      tip(points, pointer({ ...TIP, x: "epoch", y: "value", title: (point) => lines(`epoch ${point.epoch}`, `${point.name} ${text(point.value)}`, point.part) })),
    ],
  });
  return figure({
    title,
    legend: names.length > 1 && legend(names.map((name, k) => [name, HUES[k], "line"])),
    chart: chart(`${title} by epoch`, build),
    numbers: tableBehind(
      title,
      [
        { name: "Epoch", number: true, value: (point) => String(point.epoch) },
        { name: "What", value: (point) => [point.name, point.part].filter(Boolean).join(", ") },
        { name: "Value", number: true, value: (point) => text(point.value) },
      ],
      points
    ),
  });
}

function ranking(title, trials, note) {
  const rows = trials.filter((trial) => trial.score !== null);
  const build = (width) => ({
    width,
    height: 58 + 22 * rows.length,
    marginLeft: Math.min(190, width * 0.42),
    x: { label: "score", ticks: width < 420 ? 3 : 6, nice: true },
    y: { domain: rows.map((row) => row.name), label: null, tickSize: 0, tickFormat: (name) => short(name, width < 420 ? 18 : 28) },
    marks: [
      gridX({ stroke: "var(--line)", strokeOpacity: 1, ticks: width < 420 ? 3 : 6 }),
      dot(rows, { x: "score", y: "name", r: 5, fill: (row) => (row === rows[0] ? HUES[0] : "var(--muted)") }),
      tip(rows, pointer({ ...TIP, x: "score", y: "name", title: (row) => lines(row.name, `score ${score(row.score)}`) })),
    ],
  });
  return figure({
    title,
    note,
    chart: chart(`${title}, the best first: ${rows.slice(0, 3).map((row) => `${row.name} ${score(row.score)}`).join(", ")}`, build),
    numbers: tableBehind(
      title,
      [
        { name: "Variant", value: (row) => row.name },
        { name: "Score", number: true, value: (row) => score(row.score) },
        { name: "State part", number: true, value: (row) => score(row.state_score) },
        { name: "GPS part", number: true, value: (row) => score(row.gps_score) },
      ],
      rows
    ),
  });
}

function members(title, found) {
  if (!found.members.length) return missing(title, "the ensemble doesn't say what its members scored");
  const rows = found.members;
  const build = (width) => ({
    width,
    height: 58 + 28 * rows.length,
    marginLeft: Math.min(190, width * 0.42),
    x: { label: "score alone", ticks: width < 420 ? 3 : 6, nice: true },
    y: { domain: rows.map((row) => row.name), label: null, tickSize: 0, tickFormat: (name) => short(name, width < 420 ? 18 : 28) },
    marks: [
      gridX({ stroke: "var(--line)", strokeOpacity: 1, ticks: width < 420 ? 3 : 6 }),
      dot(rows, { x: "score", y: "name", r: (row) => 3 + 7 * Math.sqrt(row.weight ?? 0), fill: HUES[0] }),
      tip(rows, pointer({ ...TIP, x: "score", y: "name", title: (row) => lines(row.name, `score alone ${score(row.score)}`, `weight ${percent(row.weight)}`) })),
    ],
  });
  return figure({
    title,
    note: `Combined by ${found.method}. The larger a dot, the more its member weighs.`,
    chart: chart(`Members: ${rows.map((row) => `${row.name} ${score(row.score)}`).join(", ")}`, build),
    numbers: tableBehind(
      title,
      [
        { name: "Member", value: (row) => row.name },
        { name: "Weight", number: true, value: (row) => percent(row.weight) },
        { name: "Score alone", number: true, value: (row) => score(row.score) },
      ],
      rows
    ),
  });
}
