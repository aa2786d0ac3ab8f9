// How far the points are off.
import { asPercent, count, km, percent } from "./format.js";
import { figure, grid, h, legend, missing, section, table, tableBehind } from "./elements.js";
import { HUES, TIP, chart, gridY, line, lines, pointerX, ruleX, text, tip } from "./chart.js";

export function errorsSection(report) {
  const runs = report.runs.filter((run) => !run.errors.missing);
  const lost = report.runs.filter((run) => run.errors.missing).map((run) => missing(run.name, run.errors.missing));
  const content = runs.length ? [cumulative(runs), within(runs)] : [];
  return section("errors", "Distance", null, grid(...content, ...lost));
}

function cumulative(runs) {
  const marks = runs[0].errors.marks;
  const points = runs.flatMap((run, r) => run.errors.curve.map(([away, share, id]) => ({ away: Math.max(away, 0.1), km: away, share, id, run: run.name, r })));
  const least = Math.min(1, ...points.map((point) => point.away));
  const most = Math.max(3000, ...points.map((point) => point.away));
  const hover = (point) => lines(runs.length > 1 && point.run, `sample ${point.id}`, `${km(point.km)} off`, `${percent(point.share)} are as near or nearer`);
  const build = (width) => ({
    width,
    height: 340,
    marginLeft: 48,
    marginTop: 26,
    x: { type: "log", domain: [least, most], label: null, ticks: marks.map((mark) => mark.km), tickFormat: () => "" },
    y: { domain: [0, 1], label: null, tickFormat: asPercent, ticks: 5 },
    marks: [
      gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: 5 }),
      // The axis of a logarithm would leave some of its own labels out.
      text(marks, { x: "km", frameAnchor: "bottom", dy: 18, text: (mark) => `${count(mark.km)}${width > 420 ? " km" : ""}`, fill: "currentColor" }),
      ruleX(marks, { x: "km", stroke: "var(--muted)", strokeDasharray: "3 3", strokeOpacity: 0.7 }),
      runs.length === 1 && text(marks, { x: "km", frameAnchor: "top", dy: -18, text: (mark) => percent(mark.share), fill: "var(--ink)" }),
      ...runs.map((run, r) => line(points.filter((point) => point.r === r), { x: "away", y: "share", stroke: HUES[r], strokeWidth: 2.2, curve: "step-after" })),
      tip(points, pointerX({ ...TIP, x: "away", y: "share", title: hover })),
    ].filter(Boolean),
  });
  const said = runs.map((run) => `${run.name}: half of the points within ${km(run.errors.median_km)}`).join("; ");
  return figure({
    title: "Share of the points within a distance",
    note: `${runs.length > 1 ? `${said}. ` : `Half of the points lie within ${km(runs[0].errors.median_km)}. `}The scale is logarithmic; the marks are those that papers report.`,
    legend: runs.length > 1 && legend(runs.map((run, r) => [run.name, HUES[r], "line"])),
    chart: chart(`Cumulative distribution of the errors. ${said}`, build),
    numbers: tableBehind(
      "Errors of samples, by distance",
      [
        ...(runs.length > 1 ? [{ name: "Run", value: (point) => point.run }] : []),
        { name: "Sample", value: (point) => point.id },
        { name: "Distance", number: true, value: (point) => km(point.km) },
        { name: "As near or nearer", number: true, value: (point) => percent(point.share) },
      ],
      points
    ),
  });
}

function within(runs) {
  const columns = [
    { name: "Within", value: (mark) => `${count(mark.km)} km` },
    ...runs.map((run) => ({ name: runs.length > 1 ? run.name : "Share of the points", number: true, value: (mark) => percent(run.errors.marks[mark.at].share) })),
  ];
  const rows = runs[0].errors.marks.map((mark, at) => ({ ...mark, at }));
  return h("div", { class: "panel" }, h("h3", {}, "Within the marks of papers"), table("Share of the points within a distance", columns, rows));
}
