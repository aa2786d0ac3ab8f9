// What the page's modules use of Observable Plot, as one global: `vendor`.
export {
  cell, dot, geo, gridX, gridY, line, link, plot, pointer, pointerX, pointerY, ruleX, text, tip,
} from "@observablehq/plot";
