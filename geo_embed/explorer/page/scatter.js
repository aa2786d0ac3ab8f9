// A plane of points to zoom, pan, pick from and brush, by mouse, touch or keyboard. The map and the embedding view are two of them.
import { h } from "./elements.js";
import { pointLayer } from "./points.js";

const SVG = "http://www.w3.org/2000/svg";
const CLOSEST = 0.7, FARTHEST = 600;
// Pixels that a pointer may tremble, and within which a point is meant.
const STILL = 4, NEAR = 9;
const TOOLS = { pan: "Move", box: "Box", lasso: "Lasso" };

export const calm = matchMedia("(prefers-reduced-motion: reduce)");

export function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes ?? {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Places are in units of the plane, whose `extent` [left, top, right, bottom] fills the view at zoom 1.
// Called back: pick(row), hover(row), point(x, y) for a click where `pointing` is true, brush(shape), moved(camera),
// ground(pen, camera) to paint below the points, above(svg, at) to put elements above them.
export function scatter({ label, help, tools = true, ...calls }) {
  const ground = h("canvas", { class: "ground", "aria-hidden": "true" });
  const above = svg("svg", { class: "above", "aria-hidden": "true" });
  const tip = h("div", { class: "tip", hidden: true });
  const keys = h("p", { class: "unseen", id: `${label.replaceAll(" ", "-")}-keys` }, help);
  const plane = h("div", { class: "plane", tabindex: "0", role: "application", "aria-label": label, "aria-describedby": keys.id }, ground, above, tip);
  const layer = pointLayer(plane);
  plane.insertBefore(plane.querySelector("canvas.points"), above);
  const camera = { zoom: 1, x: 0.5, y: 0.5 };
  const made = { plane, layer, camera, kind: () => layer.kind, tool: "pan", pointing: false, selecting: true };
  let [width, height, ratio] = [0, 0, 1];
  let [extent, places, selected, chosenCount] = [[0, 0, 1, 1], new Float32Array(0), null, 0];
  let [shape, draft, asked, whole, flight] = [null, null, false, false, 0];
  // The selection before a box is drawn, which a pinch brings back.
  let kept = null;

  // Where the plane lies on the screen: scale, and where its origin is.
  function view() {
    const [left, top, right, bottom] = extent;
    const scale = Math.min(width / (right - left), height / (bottom - top)) * camera.zoom;
    return { scale, x: width / 2 - (left + camera.x * (right - left)) * scale, y: height / 2 - (top + camera.y * (bottom - top)) * scale };
  }

  const toScreen = (x, y) => {
    const { scale, x: dx, y: dy } = view();
    return [x * scale + dx, y * scale + dy];
  };
  const toPlane = (x, y) => {
    const { scale, x: dx, y: dy } = view();
    return [(x - dx) / scale, (y - dy) / scale];
  };

  // Paint everything with the next frame; or, where only marks moved, those.
  function redraw() {
    whole = true;
    remark();
  }

  function remark() {
    if (asked || !width) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      if (whole) paint(view());
      whole = false;
      const marks = [];
      if (draft ?? shape) marks.push(outline(draft ?? shape));
      calls.above?.(marks, toScreen);
      if (plane.matches(":focus-visible")) {
        marks.push(svg("path", { class: "cross", d: `M${width / 2 - 9} ${height / 2}h18M${width / 2} ${height / 2 - 9}v18` }));
      }
      above.replaceChildren(...marks);
    });
  }

  function paint(at) {
    if (calls.ground) {
      const pen = ground.getContext("2d");
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.clearRect(0, 0, ground.width, ground.height);
      pen.setTransform(at.scale * ratio, 0, 0, at.scale * ratio, at.x * ratio, at.y * ratio);
      calls.ground(pen, at);
    }
    layer.draw({ ...at, diameter: diameter(chosenCount), small: diameter(places.length / 2), ratio });
  }

  // Few points are large, many small, on a small plane smaller; all grow as they are looked at from near.
  function diameter(count) {
    const crowd = Math.min(9, Math.max(2.4, 2.4 + 180 / Math.sqrt(1 + count)));
    const room = Math.min(1, Math.max(0.6, Math.sqrt(Math.min(width, height) / 640)));
    return Math.min(10, Math.max(2.2, crowd * room) * Math.min(2.4, Math.max(0.8, camera.zoom ** 0.22)));
  }

  function outline(drawn) {
    const corners = drawn.length === 4 ? [drawn[0], drawn[1], drawn[2], drawn[1], drawn[2], drawn[3], drawn[0], drawn[3]] : drawn;
    let d = "";
    for (let k = 0; k < corners.length; k += 2) d += `${k ? "L" : "M"}${toScreen(corners[k], corners[k + 1]).map((x) => x.toFixed(1))}`;
    return svg("path", { class: "brush", d: `${d}Z` });
  }

  function resize() {
    const box = plane.getBoundingClientRect();
    if (!box.width || !box.height) return;
    [width, height, ratio] = [box.width, box.height, Math.min(2, devicePixelRatio || 1)];
    ground.width = Math.round(width * ratio);
    ground.height = Math.round(height * ratio);
    above.setAttribute("viewBox", `0 0 ${width} ${height}`);
    layer.resize(width, height, ratio);
    made.width = width;
    made.height = height;
    redraw();
  }

  function moveTo(zoom, x, y) {
    camera.zoom = Math.min(FARTHEST, Math.max(CLOSEST, zoom));
    camera.x = Math.min(1.3, Math.max(-0.3, x));
    camera.y = Math.min(1.3, Math.max(-0.3, y));
    calls.moved?.(camera);
    redraw();
  }

  const spanX = () => extent[2] - extent[0];
  const spanY = () => extent[3] - extent[1];

  // Zoom so that what is at a place of the screen stays there.
  function zoomAt(factor, x = width / 2, y = height / 2) {
    const [px, py] = toPlane(x, y);
    const zoom = Math.min(FARTHEST, Math.max(CLOSEST, camera.zoom * factor));
    const keep = camera.zoom / zoom;
    const [cx, cy] = toPlane(width / 2, height / 2);
    moveTo(zoom, (px + (cx - px) * keep - extent[0]) / spanX(), (py + (cy - py) * keep - extent[1]) / spanY());
  }

  function panBy(dx, dy) {
    const { scale } = view();
    moveTo(camera.zoom, camera.x - dx / scale / spanX(), camera.y - dy / scale / spanY());
  }

  // Fly to where all of some places are in sight; at once where motion isn't wanted.
  function flyTo(points, least = 1, most = 14) {
    const finite = points.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
    if (!finite.length || !width) return;
    const [xs, ys] = [finite.map(([x]) => x), finite.map(([, y]) => y)];
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const base = Math.min(width / spanX(), height / spanY());
    const zoom = Math.min(most, Math.max(least, 0.55 * Math.min(width / (right - left || 1e-9), height / (bottom - top || 1e-9)) / base));
    glide(zoom, ((left + right) / 2 - extent[0]) / spanX(), ((top + bottom) / 2 - extent[1]) / spanY());
  }

  function glide(zoom, x, y) {
    cancelAnimationFrame(flight);
    if (calm.matches) return moveTo(zoom, x, y);
    const [from, start] = [{ ...camera }, performance.now()];
    const step = (now) => {
      const t = Math.min(1, Math.max(0, (now - start) / 260));
      const eased = t * t * (3 - 2 * t);
      const mix = (a, b) => a + (b - a) * eased;
      moveTo(from.zoom * (zoom / from.zoom) ** eased, mix(from.x, x), mix(from.y, y));
      if (t < 1) flight = requestAnimationFrame(step);
    };
    flight = requestAnimationFrame(step);
  }

  function nearest(x, y, within = NEAR) {
    const { scale, x: dx, y: dy } = view();
    let [best, least] = [-1, within * within];
    for (let row = 0; row < places.length / 2; row++) {
      if (selected && !selected[row]) continue;
      const away = (places[2 * row] * scale + dx - x) ** 2 + (places[2 * row + 1] * scale + dy - y) ** 2;
      if (away < least) [best, least] = [row, away];
    }
    return best;
  }

  // What lies in sight, as a shape.
  const inSight = () => [...toPlane(0, 0), ...toPlane(width, height)];

  // Pointers: one pans, brushes or picks, two pinch.
  const down = new Map();
  let [begun, moved, gap] = [null, false, 0];
  const at = (event) => {
    const box = plane.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  plane.addEventListener("pointerdown", (event) => {
    if (event.button || event.target.closest("button")) return;
    cancelAnimationFrame(flight);
    plane.setPointerCapture(event.pointerId);
    down.set(event.pointerId, at(event));
    if (down.size === 2) {
      const [[ax, ay], [bx, by]] = down.values();
      gap = Math.hypot(ax - bx, ay - by);
      // The first finger had begun to pan, or to select; whichever is lifted last only pans.
      if (draft && begun?.tool === "box") calls.brush?.(kept, true);
      draft = null;
      if (begun) begun.tool = "pan";
      return;
    }
    [moved, kept] = [false, shape];
    begun = { at: at(event), tool: !made.selecting ? "pan" : event.shiftKey ? "box" : made.tool };
    showTip(-1);
  });

  plane.addEventListener("pointermove", (event) => {
    const [x, y] = at(event);
    if (!down.has(event.pointerId)) return hover(x, y);
    const [px, py] = down.get(event.pointerId);
    down.set(event.pointerId, [x, y]);
    if (down.size === 2) {
      const [[ax, ay], [bx, by]] = down.values();
      const now = Math.hypot(ax - bx, ay - by);
      moved = true;
      if (gap) zoomAt(now / gap, (ax + bx) / 2, (ay + by) / 2);
      gap = now;
      return panBy((x - px) / 2, (y - py) / 2);
    }
    if (!begun) return;
    moved ||= Math.hypot(x - begun.at[0], y - begun.at[1]) > STILL;
    if (!moved) return;
    plane.classList.toggle("grabbing", begun.tool === "pan");
    if (begun.tool === "pan") return panBy(x - px, y - py);
    const here = toPlane(x, y);
    if (begun.tool === "box") draft = [...toPlane(...begun.at), ...here];
    else draft = [...(draft ?? toPlane(...begun.at)), ...here];
    remark();
    if (begun.tool === "box") calls.brush?.(draft, false);
  });

  const end = (event) => {
    if (!down.delete(event.pointerId)) return;
    plane.classList.remove("grabbing");
    if (down.size || !begun) return;
    const [x, y] = at(event);
    if (event.type === "pointercancel") draft = null;
    else if (!moved && made.pointing) calls.point?.(...toPlane(x, y));
    else if (!moved) {
      const row = nearest(x, y, event.pointerType === "touch" ? 2.5 * NEAR : NEAR);
      if (row >= 0) calls.pick?.(row);
      else if (begun.tool !== "pan") calls.brush?.(null, true);
    } else if (draft) {
      const drawn = thin(draft);
      draft = null;
      calls.brush?.(drawn, true);
    }
    begun = null;
    remark();
  };
  plane.addEventListener("pointerup", end);
  plane.addEventListener("pointercancel", end);
  plane.addEventListener("pointerleave", () => !down.size && hover(-1e9, -1e9));
  plane.addEventListener("dblclick", (event) => !made.pointing && zoomAt(2, ...at(event)));
  plane.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      cancelAnimationFrame(flight);
      zoomAt(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : event.ctrlKey ? 0.01 : 0.0018)), ...at(event));
    },
    { passive: false }
  );

  let over = -1;
  function hover(x, y) {
    if (made.pointing || !calls.describe) return;
    const row = nearest(x, y);
    plane.classList.toggle("pointing", row >= 0);
    if (row !== over) calls.hover?.((over = row));
    showTip(row);
  }

  function showTip(row) {
    tip.hidden = row < 0;
    if (row < 0) return;
    tip.replaceChildren(...calls.describe(row).map((line) => h("div", {}, line)));
    const [x, y] = toScreen(places[2 * row], places[2 * row + 1]);
    tip.style.left = `${Math.max(4, Math.min(x + 12, width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${y + 14 + tip.offsetHeight > height ? y - 12 - tip.offsetHeight : y + 14}px`;
  }

  // A lasso of a hundred corners says as much as one of a thousand, and fits into an address.
  function thin(drawn) {
    if (drawn.length === 4) return drawn;
    const [step, kept] = [Math.ceil(drawn.length / 2 / 60), []];
    for (let k = 0; k < drawn.length / 2; k += step) kept.push(drawn[2 * k], drawn[2 * k + 1]);
    return kept.length >= 6 ? kept : [...toPlane(0, 0), ...toPlane(0, 0)];
  }

  plane.addEventListener("keydown", (event) => {
    if (event.target !== plane || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? 160 : 40;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (calls.key?.(event)) return event.preventDefault();
    if (moves[event.key]) panBy(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") zoomAt(1.5);
    else if (event.key === "-") zoomAt(1 / 1.5);
    else if (event.key === "0") glide(1, 0.5, 0.5);
    else if (event.key.toLowerCase() === "v" && made.selecting) calls.brush?.(inSight(), true);
    else if (event.key === "Escape" && shape) calls.brush?.(null, true);
    else if (event.key === "Enter" && calls.pick) {
      const row = nearest(width / 2, height / 2, Infinity);
      if (row >= 0) calls.pick(row);
    } else return;
    event.preventDefault();
  });
  plane.addEventListener("focus", remark);
  plane.addEventListener("blur", remark);

  const button = (text, name, act, attributes = {}) => {
    const made = h("button", { type: "button", title: name, "aria-label": name, ...attributes }, text);
    made.addEventListener("click", act);
    return made;
  };
  const zooms = h(
    "div",
    { class: "zooms", role: "group", "aria-label": `Zoom of ${label.toLowerCase()}` },
    button("+", "Zoom in", () => zoomAt(1.5)),
    button("−", "Zoom out", () => zoomAt(1 / 1.5)),
    button("⤢", "Show all", () => glide(1, 0.5, 0.5))
  );
  const chosen = Object.entries(TOOLS).map(([key, name]) =>
    button(name, `${name}: ${{ pan: "drag to pan", box: "drag a box to select", lasso: "draw around what to select" }[key]}`, () => choose(key), { "aria-pressed": key === "pan" ? "true" : "false", "data-tool": key })
  );
  function choose(tool) {
    made.tool = tool;
    plane.dataset.tool = tool;
    for (const one of chosen) one.setAttribute("aria-pressed", String(one.dataset.tool === tool));
  }
  made.tools = tools && h("div", { class: "tools", role: "group", "aria-label": `Dragging on ${label.toLowerCase()}` }, chosen, button("In view", "Select what is in view", () => calls.brush?.(inSight(), true)));
  made.element = h("div", { class: "scatter" }, keys, plane, zooms);
  new ResizeObserver(resize).observe(plane);
  layer.lost = redraw;

  return Object.assign(made, {
    redraw,
    remark,
    moveTo,
    glide,
    zoomAt,
    panBy,
    flyTo,
    toScreen,
    toPlane,
    nearest,
    focus: () => plane.focus(),
    setPlaces(values, bounds) {
      [places, extent] = [values, bounds ?? extent];
      layer.positions(values);
      redraw();
    },
    // The bytes of each point's colour and which samples are selected; those that aren't are painted first, small and hardly seen. What
    // has a higher level of a few lies on top.
    setColours(bytes, mask, level) {
      selected = mask;
      const starts = new Uint32Array(8);
      const place = (row) => (mask[row] ? 1 + (level?.[row] ?? 0) : 0);
      for (let row = 0; row < mask.length; row++) starts[place(row) + 1]++;
      for (let k = 1; k < starts.length; k++) starts[k] += starts[k - 1];
      const faded = starts[1];
      const rows = new Uint32Array(mask.length);
      for (let row = 0; row < mask.length; row++) rows[starts[place(row)]++] = row;
      chosenCount = mask.length - faded;
      layer.colours(bytes, rows, faded);
      redraw();
    },
    setShape(drawn) {
      shape = drawn;
      remark();
    },
  });
}
