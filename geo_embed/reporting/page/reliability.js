// Whether its confidence can be believed.
import { asPercent, count, percent } from "./format.js";
import { figure, grid, h, legend, missing, section, table, tableBehind } from "./elements.js";
import { HUES, TIP, chart, dot, gridX, gridY, line, lines, link, pointer, tip } from "./chart.js";

export function reliabilitySection(report) {
  const several = report.runs.length > 1;
  const figures = report.runs.flatMap((run) => {
    const title = (name) => (several ? `${name}: ${run.name}` : name);
    const found = run.reliability;
    if (found.missing) return [missing(title("Reliability"), found.missing)];
    return [reliabilityFigure(found, title("Reliability")), numbers(found, title("Calibration"))];
  });
  return section("reliability", "Confidence", "Of the samples that it is 80 % sure of, 80 % should be right. Below the line it promises too much.", grid(...figures));
}

function reliabilityFigure(found, title) {
  const bins = found.curves.flatMap((curve, k) => curve.bins.map((bin) => ({ ...bin, curve: curve.name, hue: HUES[k] })));
  const most = Math.max(...bins.map((bin) => bin.samples));
  const hover = (bin) => lines(bin.curve, `confidence ${percent(bin.confidence)}`, `right ${percent(bin.accuracy)}`, `${count(bin.samples)} samples`);
  const build = (width) => ({
    width,
    height: Math.min(width, 460),
    marginLeft: 48,
    marginTop: 34,
    x: { domain: [0, 1], label: "confidence", tickFormat: asPercent, ticks: 5 },
    y: { domain: [0, 1], label: "share that is right", tickFormat: asPercent, ticks: 5 },
    marks: [
      gridX({ stroke: "var(--line)", strokeOpacity: 1, ticks: 5 }),
      gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: 5 }),
      link([0], { x1: 0, y1: 0, x2: 1, y2: 1, stroke: "var(--muted)", strokeDasharray: "4 4" }),
      ...found.curves.map((curve, k) => line(curve.bins, { x: "confidence", y: "accuracy", stroke: HUES[k], strokeWidth: 2, strokeDasharray: k ? "6 3" : null })),
      dot(bins, { x: "confidence", y: "accuracy", r: (bin) => 2.5 + 6 * Math.sqrt(bin.samples / most), fill: (bin) => bin.hue, fillOpacity: 0.75 }),
      tip(bins, pointer({ ...TIP, x: "confidence", y: "accuracy", title: hover })),
    ],
    r: { type: "identity" },
  });
  const said = found.curves.map((curve) => `${curve.name}: ECE ${curve.ece.toFixed(3)}, NLL ${curve.nll.toFixed(3)}`);
  return figure({
    title,
    note: "The larger a dot, the more samples.",
    legend: legend([...found.curves.map((curve, k) => [curve.name, HUES[k], k ? "dash" : "line"]), ["as sure as it is right", "var(--muted)", "dash"]]),
    chart: chart(`Reliability. ${said.join("; ")}`, build),
    numbers: tableBehind(
      title,
      [
        { name: "Curve", value: (bin) => bin.curve },
        { name: "Confidence from", number: true, value: (bin) => percent(bin.from) },
        { name: "Samples", number: true, value: (bin) => count(bin.samples) },
        { name: "Mean confidence", number: true, value: (bin) => percent(bin.confidence) },
        { name: "Right", number: true, value: (bin) => percent(bin.accuracy) },
      ],
      bins
    ),
  });
}

function numbers(found, title) {
  const columns = [
    { name: "", value: (curve) => curve.name },
    { name: "ECE", number: true, value: (curve) => curve.ece.toFixed(3) },
    { name: "NLL", number: true, value: (curve) => curve.nll.toFixed(3) },
  ];
  const words = found.calibrated
    ? "Both on the samples that the run held out, each calibrated by the others."
    : found.curves.length > 1
      ? "The run isn't calibrated. Every fifth of the samples is shown with the temperature that suits the others: what to expect of new ones."
      : "The run isn't calibrated, and the samples are too few to say what a calibration would bring.";
  return h(
    "div",
    { class: "panel" },
    h("h3", {}, title),
    h("p", {}, words),
    table(title, columns, found.curves),
    h("p", {}, "ECE: how far confidence is from accuracy, on average over 15 bins. NLL: minus the mean log-probability of the truth. Less is better.")
  );
}
