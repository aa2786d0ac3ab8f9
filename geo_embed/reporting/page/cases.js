// Single samples: the worst, the best, the least certain.
import { km, percent } from "./format.js";
import { h, missing, section, table } from "./elements.js";

const LISTS = {
  worst: "Twenty worst",
  best: "Twenty best",
  unsure: "Twenty least certain",
};

export function casesSection(report) {
  const several = report.runs.length > 1;
  const content = report.runs.map((run) => {
    if (run.cases.missing) return missing(several ? `Samples: ${run.name}` : "Samples", run.cases.missing);
    return h(
      "div",
      {},
      several && h("h3", { class: "of-run" }, run.name),
      Object.entries(LISTS).map(([key, name], k) => list(several ? `${name}: ${run.name}` : name, run.cases[key], k === 0))
    );
  });
  const lead = report.pictures
    ? "With their views. Street-view providers forbid rehosting: keep this file to yourself."
    : "Without pictures: street-view providers forbid rehosting. geo report --pictures puts the views in, for yourself alone.";
  return section("samples", "Samples", lead, ...content);
}

function list(title, rows, open) {
  const columns = [
    { name: "Sample", value: (row) => row.id },
    { name: "Truth", value: (row) => h("span", {}, row.true, h("span", { class: "at" }, place(row.at))) },
    { name: "Most probable", value: top },
    { name: "True rank", number: true, value: (row) => String(row.rank) },
    { name: "Distance", number: true, value: (row) => km(row.km) },
  ];
  if (rows.some((row) => row.views)) columns.push({ name: "Views", value: pictures });
  return h("details", { class: "list", open }, h("summary", {}, h("h3", {}, title)), table(title, columns, rows));
}

const place = ([latitude, longitude]) => `${Math.abs(latitude).toFixed(2)}° ${latitude < 0 ? "S" : "N"}, ${Math.abs(longitude).toFixed(2)}° ${longitude < 0 ? "W" : "E"}`;

function top(row) {
  return h(
    "ol",
    { class: "top" },
    row.top.map(([name, share]) => h("li", { class: name === row.true && "hit" }, name, h("span", { class: "share" }, percent(share)), name === row.true && h("span", { class: "unseen" }, " (the truth)")))
  );
}

function pictures(row) {
  return h(
    "div",
    { class: "views" },
    (row.views ?? []).map(([view, url, why]) =>
      url ? h("img", { src: url, alt: `${view} of sample ${row.id}`, title: view }) : h("span", { class: "none" }, `${view} ${why}`.trim())
    )
  );
}
