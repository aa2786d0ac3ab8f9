// Which classes are predicted too often, and which too seldom.
import { count, plural, short } from "./format.js";
import { figure, grid, legend, missing, section, tableBehind } from "./elements.js";
import { TIP, chart, dot, gridX, lines, link, pointerY, tip } from "./chart.js";

const MOST = 80;

export function distributionSection(report) {
  const several = report.runs.length > 1;
  const figures = report.runs.map((run) => {
    const title = several ? `Predicted and true: ${run.name}` : "Predicted and true classes";
    return run.classes.missing ? missing(title, run.classes.missing) : balance(run, title, several);
  });
  return section("distribution", "Distribution", "A ring to the right of its dot: predicted more often than it occurs.", grid(...figures));
}

function balance(run, title, several) {
  const occurring = run.classes.filter((row) => row.samples || row.predicted);
  const rows = [...occurring].sort((a, b) => b.samples - a.samples || b.predicted - a.predicted).slice(0, MOST);
  const hover = (row) => lines(row.state, `true ${count(row.samples)}`, `predicted first ${count(row.predicted)}`, `sum of probabilities ${row.expected.toFixed(1)}`);
  const most = Math.max(...rows.flatMap((row) => [row.samples, row.predicted, row.expected]));
  const build = (width) => {
    const ticks = Math.min(most, width < 420 ? 3 : 6);
    return {
      width,
      height: 74 + 18 * rows.length,
      marginLeft: Math.min(150, width * 0.36),
      x: { domain: [0, most * 1.03], label: "samples", ticks, axis: "both" },
      y: { domain: rows.map((row) => row.class), type: "point", padding: 0.6, label: null, tickSize: 0, tickFormat: (k) => short(run.names[k], width < 420 ? 16 : 22) },
      marginTop: 34,
      marks: [
        gridX({ stroke: "var(--line)", strokeOpacity: 1, ticks }),
        link(rows, { x1: "samples", x2: "predicted", y: "class", stroke: "var(--muted)", strokeWidth: 1.5 }),
        dot(rows, { x: "expected", y: "class", symbol: "diamond", r: 3.2, fill: "var(--c)" }),
        dot(rows, { x: "samples", y: "class", r: 4, fill: "var(--a)" }),
        dot(rows, { x: "predicted", y: "class", r: 4.5, stroke: "var(--b)", strokeWidth: 2 }),
        tip(rows, pointerY({ ...TIP, x: "samples", y: "class", title: hover })),
      ],
    };
  };
  const left = run.classes.length - rows.length;
  return figure({
    title,
    wide: !several,
    note: left ? `${plural(left, "class", "classes")} that neither occur${left === 1 ? "s" : ""} nor ${left === 1 ? "is" : "are"} predicted, or ${left === 1 ? "is" : "are"} rare, left out.` : null,
    legend: legend([
      ["true", "var(--a)"],
      ["predicted first", "var(--b)", "ring"],
      ["sum of probabilities", "var(--c)", "diamond"],
    ]),
    chart: chart(`True and predicted samples of ${rows.length} classes`, build),
    numbers: tableBehind(
      title,
      [
        { name: "Class", value: (row) => row.state },
        { name: "True", number: true, value: (row) => count(row.samples) },
        { name: "Predicted first", number: true, value: (row) => count(row.predicted) },
        { name: "Sum of probabilities", number: true, value: (row) => row.expected.toFixed(1) },
      ],
      run.classes
    ),
  });
}
