// Elements of the page. Texts are set as text: nothing of the data is ever read as HTML.

// An element: h("p", {class: "lead"}, "text", child).
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  return element;
}

let serial = 0;

export const fresh = (prefix) => `${prefix}-${++serial}`;

// Columns: {name, value: row => text or element, number: whether it is one}.
export function table(caption, columns, rows) {
  const head = columns.map((column) => h("th", { scope: "col", class: column.number && "number" }, column.name));
  const body = rows.map((row) =>
    h(
      "tr",
      {},
      columns.map((column, k) =>
        h(k ? "td" : "th", { scope: k ? null : "row", class: column.number && "number" }, column.value(row))
      )
    )
  );
  const made = h(
    "table",
    {},
    h("caption", {}, caption),
    h("thead", {}, h("tr", {}, head)),
    h("tbody", {}, body)
  );
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, made);
}

// A table behind a figure, made when somebody opens it.
export function tableBehind(caption, columns, rows) {
  const details = h("details", { class: "behind" }, h("summary", {}, "The numbers as a table"));
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(table(caption, columns, rows));
  });
  return details;
}

// A figure: title and note, then controls, legend and chart, and below it what it is owed to and its numbers.
export function figure({ title, chart, note = null, numbers = null, legend = null, controls = null, below = null, wide = false }) {
  return h(
    "figure",
    { class: wide && "wide" },
    h("figcaption", {}, h("h3", {}, title), note && h("p", {}, note)),
    controls,
    legend,
    chart,
    below && h("p", { class: "below" }, below),
    numbers
  );
}

export function missing(title, why) {
  return h("div", { class: "missing" }, h("h3", {}, title), h("p", {}, why));
}

// Entries of a name, a colour and a shape: dot, ring, line, bar, dash.
export function legend(entries) {
  return h(
    "ul",
    { class: "legend" },
    entries.map(([name, colour, shape = "dot"]) => {
      const swatch = h("span", { class: `swatch ${shape}`, "aria-hidden": "true" });
      swatch.style.color = colour;
      return h("li", {}, swatch, name);
    })
  );
}

// Radio buttons; `choose` is called with the key of the one that is taken.
export function choices(label, options, choose) {
  const name = fresh("choice");
  return h(
    "fieldset",
    { class: "choices" },
    h("legend", {}, label),
    Object.entries(options).map(([key, text], k) => {
      const input = h("input", { type: "radio", name, value: key, checked: k === 0 });
      input.addEventListener("change", () => choose(key));
      return h("label", {}, input, text);
    })
  );
}

export function section(id, title, lead, ...content) {
  return h(
    "section",
    { id, "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title` }, title),
    lead && h("p", { class: "lead" }, lead),
    ...content
  );
}

export const grid = (...figures) => h("div", { class: "figures" }, ...figures);
