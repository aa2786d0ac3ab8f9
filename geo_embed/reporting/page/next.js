// What to do next.
import { h, section } from "./elements.js";

export function nextSection(report) {
  const several = report.runs.length > 1;
  const content = report.runs.map((run) =>
    h(
      "div",
      {},
      several && h("h3", {}, run.name),
      h(
        "ol",
        { class: "next" },
        run.next.map((row) => h("li", {}, h("p", {}, `${row.why}:`), command(row.command), row.then && command(row.then)))
      )
    )
  );
  return section("next", "What to do next", null, ...content);
}

const command = (text) => h("pre", { tabindex: "0" }, h("code", {}, text));
