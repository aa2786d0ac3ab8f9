// The page: its head, its sections, and the way between them.
import { count, percent, km } from "./format.js";
import { h } from "./elements.js";
import { scoreSection } from "./score.js";
import { trainingSection } from "./training.js";
import { mapSection } from "./map.js";
import { confusionSection } from "./confusion.js";
import { reliabilitySection } from "./reliability.js";
import { errorsSection } from "./errors.js";
import { distributionSection } from "./distribution.js";
import { viewsSection } from "./views.js";
import { casesSection } from "./cases.js";
import { nextSection } from "./next.js";

const SECTIONS = [
  scoreSection,
  mapSection,
  confusionSection,
  errorsSection,
  reliabilitySection,
  distributionSection,
  viewsSection,
  trainingSection,
  casesSection,
  nextSection,
];

function inWords(run) {
  if (run.headline.missing) return `${run.headline.missing}.`;
  const of = Object.fromEntries(run.headline.map((row) => [row.key, row.value]));
  return `The first class is right for ${percent(of.top1)} of ${count(run.samples)} held-out samples, one of five for ${percent(of.top5)}; half of the points lie within ${km(of.median_km)}.`;
}

function head(report) {
  const several = report.runs.length > 1;
  const runs = report.runs.map((run) =>
    h(
      "div",
      { class: "about" },
      several && h("h2", {}, run.name),
      h("p", {}, inWords(run)),
      run.note && h("p", { class: "note" }, run.note),
      h("dl", {}, run.facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))))
    )
  );
  const names = report.runs.map((run) => run.name).join(" and ");
  document.title = `Report: ${names}`;
  document.getElementById("title").textContent = names;
  document.getElementById("about").replaceChildren(...runs);
  document.getElementById("made").textContent = `geo_embed ${report.version}, ${report.made}`;
}

// On paper nobody opens a list.
function openForPaper() {
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details.list:not([open])")];
    closed.forEach((list) => (list.open = true));
  });
  window.addEventListener("afterprint", () => closed.forEach((list) => (list.open = false)));
}

function show() {
  const report = JSON.parse(document.getElementById("data").textContent);
  head(report);
  const main = document.getElementById("sections");
  const sections = SECTIONS.map((make) => make(report));
  main.replaceChildren(...sections);
  const links = sections.map((section) => h("li", {}, h("a", { href: `#${section.id}` }, section.querySelector("h2").textContent)));
  document.getElementById("contents").replaceChildren(...links);
  openForPaper();
  document.documentElement.dataset.shown = "yes";
}

show();
