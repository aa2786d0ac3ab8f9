// Charts by Observable Plot, as wide as the page lets them be, and drawn anew when that changes.

export const { plot, dot, link, geo, line, ruleX, gridX, gridY, tip, text, cell, pointer, pointerX, pointerY } =
  vendor;

// How a tip looks: the look of a figure.
export const TIP = { lineHeight: 1.3, textPadding: 10, fill: "var(--panel)", stroke: "var(--muted)" };

// Of runs beside one another: hues that colour-blind people tell apart (Okabe & Ito, 2008), set in theme.css.
export const HUES = ["var(--a)", "var(--b)", "var(--c)", "var(--d)", "var(--e)", "var(--f)"];

// From nothing to all of a hue, for light and dark alike.
export const shade = (share, hue = "var(--a)") =>
  `color-mix(in oklab, ${hue} ${Math.round(100 * Math.max(0, Math.min(1, share)))}%, var(--empty))`;

const REDRAWS = new ResizeObserver((entries) => {
  for (const entry of entries) entry.target.redraw(Math.round(entry.contentRect.width));
});

// A box with the chart that `options(width)` describes; what it shows in a sentence goes to screen readers.
export function chart(label, options, { least = 0 } = {}) {
  const inner = document.createElement("div");
  inner.className = "chart";
  const box = document.createElement("div");
  box.className = least ? "scroll" : "fitted";
  if (least) {
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", `${label}, can be scrolled`);
  }
  box.append(inner);
  let drawn = 0;
  box.redraw = (width, force = false) => {
    if (!width || (width === drawn && !force)) return;
    drawn = width;
    inner.replaceChildren(svg(label, options(Math.max(width, least))));
  };
  box.refresh = () => box.redraw(drawn, true);
  REDRAWS.observe(box);
  return box;
}

function svg(label, options) {
  const made = plot({ marginTop: 18, marginRight: 16, marginBottom: 36, ...options });
  // The policy refuses a style element; theme.css says the same.
  made.querySelectorAll("style").forEach((style) => style.remove());
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", label);
  return made;
}

// What a hover says: lines of text.
export const lines = (...parts) => parts.filter((part) => part).join("\n");
