// How good: the score, its parts and their intervals, random beside spatial, and a run beside another.
import { count, interval, measure, percent, plural, score, signed } from "./format.js";
import { figure, grid, h, legend, missing, section, table, tableBehind } from "./elements.js";
import { HUES, TIP, chart, dot, gridX, lines, link, pointer, ruleX, tip } from "./chart.js";

const SHOWN = ["score", "state_score", "gps_score", "top1", "top5"];

export function scoreSection(report) {
  const runs = report.runs.filter((run) => !run.headline.missing);
  const content = [];
  for (const run of report.runs) {
    content.push(run.headline.missing ? missing(run.name, run.headline.missing) : tiles(run, report.runs.length > 1));
  }
  if (runs.length) content.push(grid(intervals(runs), ...report.comparisons.map(difference)));
  if (runs.length) content.push(validation(runs));
  return section(
    "score",
    "Score",
    "0.70 × state part + 0.30 × GPS part, of samples that had no part in the training. Intervals are 95 % bootstraps.",
    ...content
  );
}

function tiles(run, named) {
  const [first, ...rest] = run.headline;
  const tile = (row, main) =>
    h(
      "div",
      { class: main ? "tile main" : "tile" },
      h("dt", {}, row.name),
      h("dd", {}, measure(row.value, row.kind)),
      h("dd", { class: "interval" }, interval(row.low, row.high, row.kind) || " ")
    );
  return h(
    "div",
    { class: "of-run" },
    named && h("h3", {}, run.name),
    h("dl", { class: "tiles" }, tile(first, true), rest.map((row) => tile(row, false)))
  );
}

function intervals(runs) {
  const rows = runs.flatMap((run, r) =>
    run.headline
      .filter((row) => SHOWN.includes(row.key))
      .map((row) => ({ ...row, run: run.name, hue: HUES[r], shift: (r - (runs.length - 1) / 2) * 11 }))
  );
  const names = [...new Set(rows.map((row) => row.name))];
  const hover = (row) => lines(runs.length > 1 && row.run, `${row.name}: ${score(row.value)}`, interval(row.low, row.high, "share"));
  const build = (width) => ({
    width,
    height: 34 + names.length * Math.max(36, 14 * runs.length + 12),
    marginLeft: 112,
    x: { domain: [0, 1], label: null, ticks: width < 420 ? 3 : 6 },
    y: { domain: names, label: null, tickSize: 0, type: "point", padding: 0.6 },
    marks: [
      gridX({ stroke: "var(--line)", strokeOpacity: 1, ticks: width < 420 ? 3 : 6 }),
      ...runs.flatMap((run, r) => {
        const own = rows.filter((row) => row.run === run.name);
        const dy = own[0].shift;
        return [
          link(own.filter((row) => row.low !== null), { x1: "low", x2: "high", y: "name", dy, stroke: HUES[r], strokeWidth: 4, strokeOpacity: 0.45, strokeLinecap: "round" }),
          dot(own, { x: "value", y: "name", dy, r: 5, fill: HUES[r] }),
          tip(own, pointer({ ...TIP, x: "value", y: "name", dy, title: hover })),
        ];
      }),
    ],
  });
  const label = runs.map((run) => `${run.name}: score ${score(run.headline[0].value)}`).join("; ");
  return figure({
    title: "Score and its parts",
    note: runs.some((run) => run.headline[0].low === null) ? "One sample, or one group of them, tells nothing of a spread: there is no interval." : null,
    legend: runs.length > 1 && legend(runs.map((run, r) => [run.name, HUES[r]])),
    chart: chart(`Score and its parts with 95 % intervals. ${label}`, build),
    numbers: tableBehind(
      "Metrics and their 95 % intervals",
      [
        { name: "Metric", value: (row) => row.name },
        ...runs.flatMap((run, r) => [
          { name: run.name, number: true, value: (row) => measure(run.headline[row.at].value, row.kind) },
          { name: "95 % interval", number: true, value: (row) => interval(run.headline[row.at].low, run.headline[row.at].high, row.kind) || "–" },
        ]),
      ],
      runs[0].headline.map((row, at) => ({ ...row, at }))
    ),
  });
}

function difference(found) {
  const title = `${found.a} less ${found.b}`;
  if (found.missing) return missing(title, found.missing);
  const [whole] = found.rows;
  const known = whole.low !== null;
  const words = !known
    ? "Too few samples for an interval."
    : whole.low > 0 || whole.high < 0
      ? `${whole.difference > 0 ? found.a : found.b} is better: the interval leaves zero out.`
      : "The interval holds zero: these samples don't tell which is better.";
  const reach = 1.15 * Math.max(...found.rows.flatMap((row) => [row.difference, row.low ?? 0, row.high ?? 0]).map(Math.abs), 0.002);
  const digits = reach < 0.02 ? 3 : 2;
  const range = (row) => (known ? `${signed(row.low)} to ${signed(row.high)}` : "");
  const build = (width) => ({
    width,
    height: 34 + 48 * found.rows.length,
    marginLeft: 112,
    x: { domain: [-reach, reach], label: null, ticks: width < 420 ? 3 : 5, tickFormat: (x) => (x === 0 ? "0" : `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(digits)}`) },
    y: { domain: found.rows.map((row) => row.name), label: null, tickSize: 0, type: "point", padding: 0.6 },
    marks: [
      gridX({ stroke: "var(--line)", strokeOpacity: 1, ticks: width < 420 ? 3 : 5 }),
      ruleX([0], { stroke: "var(--muted)", strokeDasharray: "3 3" }),
      link(known ? found.rows : [], { x1: "low", x2: "high", y: "name", stroke: HUES[0], strokeWidth: 4, strokeOpacity: 0.45, strokeLinecap: "round" }),
      dot(found.rows, { x: "difference", y: "name", r: 5, fill: HUES[0] }),
      tip(found.rows, pointer({ ...TIP, x: "difference", y: "name", title: (row) => lines(`${row.name}: ${signed(row.difference)}`, range(row)) })),
    ],
  });
  return figure({
    title: `Difference: ${title}`,
    note: `${signed(whole.difference)}${known ? ` (${range(whole)})` : ""}. ${words}`,
    chart: chart(`${title}: ${signed(whole.difference)}. ${words}`, build),
    numbers: tableBehind(
      `${title}, on the ${plural(found.samples, "sample")} that both held out`,
      [
        { name: "", value: (row) => row.name },
        { name: "Difference", number: true, value: (row) => signed(row.difference) },
        { name: "95 % interval", number: true, value: (row) => range(row) || "–" },
      ],
      found.rows
    ),
  });
}

const KINDS = { random: "Held out at random", spatial: "Whole places held out" };

function validation(runs) {
  const title = "Random and spatial";
  const founds = runs.map((run) => run.validation).filter((found) => !found.missing);
  if (!founds.length) return missing(title, runs[0].validation.missing);
  const seen = new Map(founds.flatMap((found) => found.columns.map((column) => [column.run, { ...column, apart_km: found.group_km }])));
  const known = [...seen.values()].sort((a, b) => (a.kind === "spatial") - (b.kind === "spatial"));
  const lacking = founds.map((found) => found.lacking).find((kind) => kind && !known.some((column) => column.kind === kind));
  const rows = [
    ["Run", (c) => c.run],
    ["Score", (c) => score(c.score)],
    ["95 % interval", (c) => interval(c.low, c.high, "share") || "–"],
    ["Samples", (c) => count(c.samples)],
    ["With a near twin in training", (c) => (c.twins === null ? "not counted" : `${count(c.twins)} (${percent(c.samples ? c.twins / c.samples : null)})`)],
    ["Score without those", (c) => score(c.without_twins)],
    [`Farther than ${founds[0].group_km} km from any training sample`, (c) => (c.apart === null ? "train CSV not at hand" : count(c.apart.samples))],
    ["Score of those alone", (c) => score(c.apart === null ? null : c.apart.score)],
  ];
  const columns = [
    { name: "", value: (row) => row[0] },
    ...known.map((column) => ({ name: KINDS[column.kind] ?? column.kind, number: true, value: (row) => row[1](column) })),
  ];
  if (lacking) columns.push({ name: KINDS[lacking], number: true, value: (row) => (row[0] === "Run" ? "no such run yet" : "–") });
  const other = lacking && runs.flatMap((run) => run.next).find((row) => row.command.includes(`training.validation=${lacking}`));
  return h(
    "div",
    { class: "panel validation" },
    h("h3", {}, title),
    h("p", {}, "Streets that a training sample shows, too, are easy. Holding whole places out asks for new ones."),
    table(title, columns, rows),
    other && h("p", {}, "To have both:"),
    other && h("pre", { tabindex: "0" }, h("code", {}, other.command))
  );
}
