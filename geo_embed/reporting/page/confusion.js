// Which class is taken for which.
import { count, percent, plural, short } from "./format.js";
import { figure, h, legend, missing, section, table, tableBehind } from "./elements.js";
import { TIP, cell, chart, lines, pointer, shade, tip } from "./chart.js";

const PAIRS = 14;
// From so many classes on the matrix takes the whole width.
const WIDE = 45;

export function confusionSection(report) {
  const several = report.runs.length > 1;
  const figures = report.runs.flatMap((run) => {
    const title = (name) => (several ? `${name}: ${run.name}` : name);
    const found = run.confusion;
    if (found.missing) return [missing(title("Confusion"), found.missing)];
    const wide = found.order.length > WIDE;
    return [matrix(run, title("Confusion matrix"), wide), pairs(found, title("Most frequent mistakes"), wide)];
  });
  return section("confusion", "Confusion", "Classes stand in an order of places: near the diagonal, neighbours are taken for one another.", h("div", { class: "figures matrix" }, ...figures));
}

function matrix(run, title, wide) {
  const { order, cells, hidden } = run.confusion;
  const rows = cells.map(([label, answer, n]) => ({ label, answer, n, share: n / run.classes[label].samples }));
  const hover = (row) => lines(`true: ${run.names[row.label]}`, `predicted: ${run.names[row.answer]}`, `${plural(row.n, "sample")}, ${percent(row.share)} of the true`);
  const longest = Math.max(...order.map((k) => short(run.names[k], 16).length));
  const build = (width) => {
    const margin = 14 + 6.9 * longest;
    const room = width - margin - 12;
    const size = Math.min(room / order.length, Math.max(34, 260 / order.length));
    const side = size * order.length;
    const label = Math.max(7.5, Math.min(12, size * 0.86));
    return {
      width: Math.min(width, side + margin + 12),
      height: side + margin + 12,
      marginTop: 12,
      marginLeft: margin,
      marginBottom: margin,
      marginRight: 12,
      x: { domain: order, label: null, tickSize: 0, tickRotate: -90, tickFormat: (k) => short(run.names[k], 16), padding: 0.04 },
      y: { domain: order, label: null, tickSize: 0, tickFormat: (k) => short(run.names[k], 16), padding: 0.04 },
      style: { fontSize: `${label}px` },
      marks: [
        cell(
          order.map((k) => ({ k })),
          { x: "k", y: "k", fill: "none", stroke: "var(--line)" }
        ),
        cell(rows, { x: "answer", y: "label", fill: (row) => shade(0.12 + 0.88 * row.share, row.label === row.answer ? "var(--a)" : "var(--b)"), inset: 0.3 }),
        tip(rows, pointer({ ...TIP, x: "answer", y: "label", title: hover, maxRadius: 60 })),
      ],
    };
  };
  const right = rows.filter((row) => row.label === row.answer).reduce((sum, row) => sum + row.n, 0);
  return figure({
    title,
    wide,
    note: `Rows: the truth; columns: what was predicted; the darker, the larger its share of the row.${hidden ? ` ${plural(hidden, "rarer class", "rarer classes")} left out.` : ""}`,
    legend: legend([
      ["right", "var(--a)", "bar"],
      ["wrong", "var(--b)", "bar"],
    ]),
    chart: chart(`Confusion matrix of ${order.length} classes; ${count(right)} samples on the diagonal`, build, { least: Math.min(130 + 9.5 * order.length, 900) }),
    numbers: tableBehind(
      title,
      [
        { name: "True", value: (row) => run.names[row.label] },
        { name: "Predicted", value: (row) => run.names[row.answer] },
        { name: "Samples", number: true, value: (row) => count(row.n) },
        { name: "Share of the true", number: true, value: (row) => percent(row.share) },
      ],
      [...rows].sort((a, b) => b.n - a.n)
    ),
  });
}

function pairs(found, title, wide) {
  if (!found.pairs.length) return missing(title, "every sample's first class is right");
  const columns = [
    { name: "True", value: (row) => row.true },
    { name: "Taken for", value: (row) => row.predicted },
    { name: "Samples", number: true, value: (row) => count(row.samples) },
    { name: "Share", number: true, value: (row) => percent(row.share) },
    { name: "How sure", number: true, value: (row) => percent(row.mean_confidence) },
  ];
  return h("div", { class: wide ? "panel wide" : "panel" }, h("h3", {}, title), table(title, columns, found.pairs.slice(0, PAIRS)));
}
