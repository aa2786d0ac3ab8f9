// What a model says of a sample, as elements: the five best classes as bars, neighbours with pictures.
import { km, percent } from "./format.js";
import { h } from "./elements.js";

export const picture = (url, side, alt) => {
  const made = h("img", { src: `${url}?side=${side}`, alt, loading: "lazy", decoding: "async" });
  made.addEventListener("error", () => made.replaceWith(h("span", { class: "none" }, "can't be shown")));
  return made;
};

// The most probable classes; the true one is marked where it is known.
export function bars(top, truth) {
  return h(
    "ol",
    { class: "bars" },
    top.map(({ state, name, probability }) => {
      const bar = h("span", { class: "bar", "aria-hidden": "true" });
      bar.style.width = `${Math.max(0.5, 100 * probability)}%`;
      const hit = truth && state === truth.state;
      return h("li", { class: hit && "hit" }, h("span", { class: "name" }, name, hit && h("span", { class: "tag" }, "truth")), h("span", { class: "share" }, percent(probability)), h("span", { class: "track" }, bar));
    })
  );
}

// Samples that are near in the learnt space; `point` is called with one that is looked at, or null.
export function neighbours(found, from, point, open) {
  if (!found?.length) return h("p", { class: "empty" }, "No neighbours: the training samples' embeddings aren't at hand, or tell nothing of this place.");
  return h(
    "ol",
    { class: "neighbours" },
    found.map((near) => {
      const content = [
        near.picture ? picture(near.picture, 128, "") : h("span", { class: "none" }, "no picture"),
        h("span", { class: "name" }, near.name),
        h("span", { class: "at" }, from === null || near.km === null ? "" : km(near.km)),
        h("span", { class: "at" }, `similarity ${near.similarity.toFixed(2)}`),
      ];
      const act = open?.(near);
      const made = h(act ? "button" : "div", { class: "neighbour", ...(act ? { type: "button" } : { tabindex: "0" }), "aria-label": `${near.split} sample ${near.sample_id}, ${near.name}${near.km === null ? "" : `, ${km(near.km)} away`}, similarity ${near.similarity.toFixed(2)}` }, content);
      if (act) made.addEventListener("click", act);
      for (const [type, value] of [["pointerenter", near], ["focus", near], ["pointerleave", null], ["blur", null]]) made.addEventListener(type, () => point(value));
      return h("li", {}, made);
    })
  );
}

export const place = ({ latitude, longitude }) => `${Math.abs(latitude).toFixed(2)}° ${latitude < 0 ? "S" : "N"}, ${Math.abs(longitude).toFixed(2)}° ${longitude < 0 ? "W" : "E"}`;

// What the server says of a thing that is missing, as a sentence.
export const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

export const facts = (entries) => h("dl", { class: "facts" }, entries.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));

export function problem(failure, again) {
  const button = again && h("button", { type: "button" }, "Try again");
  button?.addEventListener("click", again);
  return h("div", { class: "problem", role: "alert" }, h("strong", {}, failure.message), failure.hint && h("p", {}, failure.hint), button);
}
