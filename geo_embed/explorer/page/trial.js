// Try it: pictures of a person's own, and where the model thinks they were taken.
import { Failure, postForm } from "./data.js";
import { bars, facts, neighbours, place, problem, sentence } from "./answer.js";
import { km, plural } from "./format.js";
import { fresh, h } from "./elements.js";

const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MB`;

// Calls: marks(found | null) to show a prediction on the map, point(place | null), tell(text).
export function makeTrial(run, calls) {
  const views = run.view_names;
  let files = [];
  let [running, last] = [null, null];
  const input = h("input", { type: "file", accept: "image/*", multiple: views.length > 1, id: fresh("file") });
  const zone = h(
    "label",
    { class: "drop", for: input.id },
    input,
    h("strong", {}, views.length > 1 ? `Drop 1 to ${views.length} pictures here` : "Drop a picture here"),
    h("span", {}, "or choose from this machine. They go to geo explore alone, and are never written down.")
  );
  const note = h("p", { class: "note", hidden: true });
  const strip = h("ul", { class: "views" });
  const result = h("div", { class: "result" });
  const element = h("div", { class: "trial" }, h("h2", { tabindex: "-1" }, "Where is this?"));
  if (run.can_predict) element.append(zone, note, strip, result);
  else element.append(h("p", { class: "empty" }, sentence(run.why_not ?? "the backbone isn't here, so pictures can't be embedded")));

  function take(given) {
    if (!run.can_predict || !given.length) return;
    // Where every view has its picture, others are of another place.
    if (files.length === views.length) {
      for (const { url } of files) URL.revokeObjectURL(url);
      files = [];
    }
    const left = Math.max(0, given.length - (views.length - files.length));
    for (const file of given.slice(0, given.length - left)) files.push({ file, view: viewOf(file.name), url: URL.createObjectURL(file) });
    note.hidden = !left;
    note.textContent = left ? `The model looks at ${plural(views.length, "picture")} of a place at most: ${plural(left, "picture is", "pictures are")} left out.` : "";
    if (left) calls.tell(note.textContent);
    // The same file can be chosen again.
    input.value = "";
    list();
    predict();
  }

  // The view that a file is named after, else the first that is free.
  function viewOf(name) {
    const free = views.filter((view) => !files.some((one) => one.view === view));
    return free.find((view) => name.toLowerCase().includes(view.toLowerCase())) ?? free[0];
  }

  function list() {
    strip.replaceChildren(
      ...files.map((one) => {
        const image = h("img", { src: one.url, alt: `Your picture ${one.file.name}` });
        image.addEventListener("error", () => image.replaceWith(h("span", { class: "none" }, one.file.name)));
        const choice = h("select", { "aria-label": `View of ${one.file.name}` }, views.map((view) => h("option", { value: view, selected: view === one.view }, view)));
        choice.addEventListener("change", () => {
          const other = files.find((item) => item.view === choice.value);
          if (other) other.view = one.view;
          one.view = choice.value;
          list();
          predict();
        });
        const remove = h("button", { type: "button", "aria-label": `Remove ${one.file.name}` }, "×");
        remove.addEventListener("click", () => {
          files = files.filter((item) => item !== one);
          URL.revokeObjectURL(one.url);
          note.hidden = true;
          list();
          predict();
          input.focus();
        });
        return h("li", {}, image, h("div", { class: "between" }, views.length > 1 ? choice : h("span", {}, one.file.name), remove));
      })
    );
  }

  async function predict() {
    running?.abort();
    const { signal } = (running = new AbortController());
    last = null;
    calls.marks(null);
    if (!files.length) {
      result.removeAttribute("aria-busy");
      return result.replaceChildren();
    }
    result.setAttribute("aria-busy", "true");
    result.replaceChildren(h("p", { class: "waiting" }, "The model looks …"));
    try {
      const form = new FormData();
      for (const { file, view } of files) form.append(view, await sound(file));
      const found = await postForm("/api/predict", form, signal);
      if (signal.aborted) return;
      last = found;
      result.replaceChildren(...shownOf(found));
      calls.marks(found);
      calls.tell(`The model says ${found.prediction.top[0].name}`);
    } catch (failure) {
      // Other pictures are looked at already.
      if (signal.aborted) return;
      result.replaceChildren(problem(failure));
    }
    result.removeAttribute("aria-busy");
  }

  // A file that can be sent: the browser tells of a folder, of one that is gone, and of a server that stops to listen alike.
  async function sound(file) {
    if (file.size > run.most_bytes) throw new Failure(`${file.name} has ${megabytes(file.size)}, more than ${megabytes(run.most_bytes)}`, "Send a smaller one.");
    try {
      await file.slice(0, 1).arrayBuffer();
    } catch {
      throw new Failure(`${file.name} can't be read`, "Is it a folder, or has it been moved? Choose the pictures themselves.");
    }
    return file;
  }

  function shownOf({ prediction, truth, neighbours: near }) {
    return [
      facts([
        ["Prediction", h("span", { class: "key prediction-key" }, prediction.top[0].name, h("span", { class: "at" }, place(prediction)))],
        ["Truth", truth ? h("span", { class: "key truth-key" }, truth.name ?? "by the picture's own coordinates", h("span", { class: "at" }, place(truth))) : "the pictures hold no coordinates"],
        truth && prediction.km !== null && ["Distance", km(prediction.km)],
      ]),
      h("h3", {}, "Most probable"),
      bars(prediction.top, truth),
      h("h3", {}, "Nearest in the learnt space"),
      neighbours(near, truth, calls.point),
    ];
  }

  input.addEventListener("change", () => take([...input.files]));
  return { element, take, focus: () => element.querySelector("h2").focus({ preventScroll: true }), again: () => last && calls.marks(last) };
}
