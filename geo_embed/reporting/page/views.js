// What each view is worth, and what the heads let it weigh.
import { asPercent, count, percent, score, short, signed } from "./format.js";
import { figure, grid, legend, missing, section, tableBehind } from "./elements.js";
import { HUES, TIP, chart, dot, gridX, lines, link, pointer, ruleX, tip } from "./chart.js";

export function viewsSection(report) {
  const several = report.runs.length > 1;
  const figures = report.runs.flatMap((run) => {
    const title = (name) => (several ? `${name}: ${run.name}` : name);
    const found = run.views;
    if (found.missing) return [missing(title("Views"), found.missing)];
    return [ablation(run, title("What each view is worth")), weights(found, title("What each view weighs"))];
  });
  return section("views", "Views", null, grid(...figures));
}

const frameOf = (width, rows) => ({
  width,
  height: 56 + 40 * rows.length,
  marginLeft: Math.min(110, width * 0.28),
});

function ablation(run, title) {
  const rows = run.views.ablation;
  const whole = rows[0].hidden === null ? null : rows[0].hidden + rows[0].cost;
  const points = rows.flatMap((row) => [
    { view: row.view, value: row.alone, what: "alone" },
    { view: row.view, value: row.hidden, what: "without it" },
  ]);
  const hover = (point) => lines(`${point.view}, ${point.what}`, `score ${score(point.value)}`);
  const build = (width) => ({
    ...frameOf(width, rows),
    x: { label: "score", nice: true, ticks: width < 420 ? 3 : 6 },
    y: { domain: rows.map((row) => row.view), type: "point", padding: 0.6, label: null, tickSize: 0, tickFormat: (name) => short(name, 14) },
    marks: [
      gridX({ stroke: "var(--line)", strokeOpacity: 1, ticks: width < 420 ? 3 : 6 }),
      whole !== null && ruleX([whole], { stroke: "var(--ink)", strokeDasharray: "4 3" }),
      link(rows, { x1: "alone", x2: "hidden", y: "view", stroke: "var(--muted)", strokeWidth: 1.5 }),
      dot(points.filter((point) => point.what === "alone"), { x: "value", y: "view", r: 5, fill: HUES[0] }),
      dot(points.filter((point) => point.what !== "alone"), { x: "value", y: "view", r: 5, stroke: HUES[1], strokeWidth: 2 }),
      tip(points, pointer({ ...TIP, x: "value", y: "view", title: hover })),
    ].filter(Boolean),
  });
  return figure({
    title,
    note: "The run's heads answer again, with one view alone and with one view hidden.",
    legend: legend([
      ["this view alone", HUES[0]],
      ["all but this view", HUES[1], "ring"],
      ["all views", "var(--ink)", "dash"],
    ]),
    chart: chart(`Score by view. ${rows.map((row) => `${row.view}: alone ${score(row.alone)}, hidden ${score(row.hidden)}`).join("; ")}`, build),
    numbers: tableBehind(
      title,
      [
        { name: "View", value: (row) => row.view },
        { name: "Samples that have it", number: true, value: (row) => count(row.samples) },
        { name: "Score alone", number: true, value: (row) => score(row.alone) },
        { name: "Score without it", number: true, value: (row) => score(row.hidden) },
        { name: "What hiding it costs", number: true, value: (row) => (row.cost === null ? "–" : signed(row.cost)) },
      ],
      rows
    ),
  });
}

function weights(found, title) {
  if (found.weights.missing) return missing(title, found.weights.missing);
  const rows = found.weights.map((row) => ({ ...row, ...Object.fromEntries(["p5", "p25", "p50", "p75", "p95"].map((key, k) => [key, row.quantiles[k]])) }));
  const most = Math.max(...rows.map((row) => row.p95));
  const hover = (row) => lines(row.view, `mean ${percent(row.mean)}`, `half of the samples: ${percent(row.p25)} to ${percent(row.p75)}`);
  const build = (width) => ({
    ...frameOf(width, rows),
    x: { label: "share of the weight", domain: [0, Math.min(1, most * 1.1)], tickFormat: asPercent, ticks: width < 420 ? 3 : 6 },
    y: { domain: rows.map((row) => row.view), type: "point", padding: 0.6, label: null, tickSize: 0, tickFormat: (name) => short(name, 14) },
    marks: [
      gridX({ stroke: "var(--line)", strokeOpacity: 1, ticks: width < 420 ? 3 : 6 }),
      ruleX([1 / rows.length], { stroke: "var(--ink)", strokeDasharray: "4 3" }),
      link(rows, { x1: "p5", x2: "p95", y: "view", stroke: HUES[0], strokeWidth: 1.5 }),
      link(rows, { x1: "p25", x2: "p75", y: "view", stroke: HUES[0], strokeWidth: 7, strokeOpacity: 0.45, strokeLinecap: "round" }),
      dot(rows, { x: "mean", y: "view", r: 5, fill: HUES[0] }),
      tip(rows, pointer({ ...TIP, x: "mean", y: "view", title: hover })),
    ],
  });
  return figure({
    title,
    note: `Attention or gate (${found.fusions.join(", ")}) as shares of a sample's views: mean, middle half, and 5 % to 95 %.`,
    legend: legend([
      ["mean", HUES[0]],
      ["all alike", "var(--ink)", "dash"],
    ]),
    chart: chart(`Weight by view. ${rows.map((row) => `${row.view} ${percent(row.mean)}`).join(", ")}`, build),
    numbers: tableBehind(
      title,
      [
        { name: "View", value: (row) => row.view },
        { name: "Mean", number: true, value: (row) => percent(row.mean) },
        { name: "5 %", number: true, value: (row) => percent(row.p5) },
        { name: "Median", number: true, value: (row) => percent(row.p50) },
        { name: "95 %", number: true, value: (row) => percent(row.p95) },
      ],
      rows
    ),
  });
}
