// One sample: its views and what each weighed, where it is and where the model put it, and why.
import { getJson } from "./data.js";
import { bars, facts, neighbours, picture, place, problem, sentence } from "./answer.js";
import { km, percent, score } from "./format.js";
import { h } from "./elements.js";

const kept = new Map();

// What the server says of a sample; the last few are kept, so that back and forth is at once.
export async function getSample(split, id) {
  const url = `/api/samples/${encodeURIComponent(split)}/${encodeURIComponent(id)}`;
  if (!kept.has(url)) {
    kept.set(url, await getJson(url));
    if (kept.size > 60) kept.delete(kept.keys().next().value);
  }
  return kept.get(url);
}

// Calls: close(), step(±1), point(place | null), open(id), has(split, id).
export function sampleFrame(id, [at, of], calls) {
  const button = (text, name, act, disabled) => {
    const made = h("button", { type: "button", "aria-label": name, title: name, disabled }, text);
    made.addEventListener("click", act);
    return made;
  };
  const body = h("div", { class: "of-sample", "aria-busy": "true" }, h("p", { class: "waiting" }, "Looking it up …"));
  const title = h("h2", { tabindex: "-1" }, `Sample ${id}`);
  const head = h(
    "div",
    { class: "between head" },
    h("div", {}, title, h("p", { class: "at" }, at ? `${at.toLocaleString("en")} of ${of.toLocaleString("en")} selected` : "not among the selected")),
    h("div", { class: "steps" }, button("‹", "Previous sample (P)", () => calls.step(-1), at === 1), button("›", "Next sample (N)", () => calls.step(1), at > 0 && at === of), button("×", "Close (Escape)", calls.close))
  );
  return {
    element: h("article", { class: "sample", "aria-label": `Sample ${id}` }, head, body),
    focus: () => title.focus({ preventScroll: true }),
    fail: (failure, again) => body.replaceChildren(problem(failure, again)),
    // `beyond`: whether the prediction lies where the map doesn't reach; `beside`: what the run that stands beside says.
    fill(found, run, more) {
      body.removeAttribute("aria-busy");
      body.replaceChildren(...content(found, run, more, calls));
    },
  };
}

function content({ sample_id: id, views, truth, prediction, neighbours: near }, run, { beyond, beside }, calls) {
  const most = Math.max(...views.map((view) => view.weight ?? 0), 1e-9);
  const strip = h(
    "ul",
    { class: "views" },
    views.map((view) => {
      const weight = h("span", { class: "bar", "aria-hidden": "true" });
      weight.style.width = `${(100 * (view.weight ?? 0)) / most}%`;
      return h(
        "li",
        {},
        view.picture ? picture(view.picture, 256, `View ${view.name} of sample ${id}`) : h("span", { class: "none" }, "no picture"),
        h("span", { class: "name" }, view.name),
        view.weight !== null && [h("span", { class: "share" }, percent(view.weight)), h("span", { class: "track" }, weight)]
      );
    })
  );
  const top = prediction.top;
  return [
    strip,
    !views.some((view) => view.picture) && h("p", { class: "empty" }, sentence(run.why_no_pictures ?? "no picture of this sample is at hand")),
    facts([
      ["Truth", truth ? h("span", { class: "key truth-key" }, truth.name, h("span", { class: "at" }, place(truth))) : "not known"],
      ["Prediction", h("span", { class: "key prediction-key" }, top[0]?.name ?? "", h("span", { class: "at" }, place(prediction), beyond && ", beyond this map"))],
      prediction.km !== null && ["Distance", km(prediction.km)],
      prediction.score !== null && ["Score", score(prediction.score)],
      beside && [`Beside: ${run.compare}`, beside],
    ]),
    h("h3", {}, "Most probable"),
    bars(top, truth),
    h("h3", {}, "Nearest in the learnt space"),
    neighbours(near, truth, calls.point, (one) => (calls.has(one.split, one.sample_id) ? () => calls.open(one.sample_id) : null)),
  ].filter(Boolean);
}
