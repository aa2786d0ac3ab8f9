// A layer of points: WebGL 2 where a graphics card does it, else pixels that are written one by one, which is faster than WebGL without a
// card. Both draw discs of the same size. ?points=webgl or ?points=pixels before the # says otherwise.

// Positions (2N); colours (4N bytes, red to alpha), the order in which they are painted, and how many of the first are small; the view
// says where they are on the screen.
export function pointLayer(holder) {
  const canvas = document.createElement("canvas");
  canvas.className = "points";
  holder.append(canvas);
  const kept = {};
  let layer = null;
  const withoutWebGl = () => {
    layer = byPixels(replace(holder));
    for (const [name, value] of Object.entries(kept)) layer[name](...value);
  };
  const lost = () => {
    withoutWebGl();
    outer.lost?.();
  };
  const outer = {
    get kind() {
      return layer.kind;
    },
    positions: (...values) => ((kept.positions = values), layer.positions(...values)),
    colours: (...values) => ((kept.colours = values), layer.colours(...values)),
    resize: (...values) => ((kept.resize = values), layer.resize(...values)),
    draw: (view) => layer.draw(view),
  };
  const wanted = new URLSearchParams(location.search).get("points");
  if (wanted !== "pixels") layer = byWebGl(canvas, lost, wanted !== "webgl");
  if (!layer) withoutWebGl();
  return outer;
}

// A canvas that was promised to one kind of drawing can't do another.
function replace(holder) {
  const canvas = document.createElement("canvas");
  canvas.className = "points";
  holder.querySelector("canvas.points").replaceWith(canvas);
  return canvas;
}

const VERTEX = `#version 300 es
in vec2 place;
in vec4 colour;
uniform vec3 view;
uniform vec2 size;
uniform float diameter;
out vec4 shade;
void main() {
  vec2 at = (place * view.x + view.yz) / size * 2.0 - 1.0;
  gl_Position = colour.a == 0.0 ? vec4(2.0, 2.0, 2.0, 1.0) : vec4(at.x, -at.y, 0.0, 1.0);
  gl_PointSize = diameter + 1.0;
  shade = colour;
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec4 shade;
uniform float diameter;
out vec4 pixel;
void main() {
  float away = length(gl_PointCoord - 0.5) * (diameter + 1.0);
  float alpha = shade.a * clamp(diameter * 0.5 - away + 0.5, 0.0, 1.0);
  if (alpha <= 0.0) discard;
  pixel = vec4(shade.rgb * alpha, alpha);
}`;

// Not every browser tells that it has no card when it is asked.
const SOFTWARE = /swiftshader|llvmpipe|softpipe|basic render|software/i;

function rendererOf(gl) {
  const told = gl.getExtension("WEBGL_debug_renderer_info");
  return String(told ? gl.getParameter(told.UNMASKED_RENDERER_WEBGL) : "");
}

function byWebGl(canvas, lost, needsCard) {
  const gl = canvas.getContext("webgl2", { antialias: false, depth: false, premultipliedAlpha: true, failIfMajorPerformanceCaveat: needsCard });
  if (!gl || (needsCard && SOFTWARE.test(rendererOf(gl)))) return null;
  const program = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return null;
  gl.useProgram(program);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  const where = Object.fromEntries(["view", "size", "diameter"].map((name) => [name, gl.getUniformLocation(program, name)]));
  const [places, colours, order] = [gl.createBuffer(), gl.createBuffer(), gl.createBuffer()];
  const fill = (buffer, target, values) => (gl.bindBuffer(target, buffer), gl.bufferData(target, values, gl.DYNAMIC_DRAW));
  const attach = (name, buffer, width, type, whole) => {
    const place = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, width, type, whole, 0, 0);
  };
  attach("place", places, 2, gl.FLOAT, false);
  attach("colour", colours, 4, gl.UNSIGNED_BYTE, true);
  canvas.addEventListener("webglcontextlost", (event) => (event.preventDefault(), lost()));
  let [count, faded] = [0, 0];
  let size = [1, 1];
  return {
    kind: "webgl",
    positions(values) {
      // A place that the map doesn't have goes beyond its edge.
      fill(places, gl.ARRAY_BUFFER, values.map((value) => (Number.isFinite(value) ? value : 1e9)));
    },
    colours(values, rows, few) {
      [count, faded] = [rows.length, few];
      fill(colours, gl.ARRAY_BUFFER, values);
      fill(order, gl.ELEMENT_ARRAY_BUFFER, rows);
    },
    resize(width, height, ratio) {
      size = [width, height];
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      gl.viewport(0, 0, canvas.width, canvas.height);
    },
    draw({ scale, x, y, diameter, small, ratio }) {
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.uniform3f(where.view, scale, x, y);
      gl.uniform2f(where.size, ...size);
      for (const [across, first, last] of [[small, 0, faded], [diameter, faded, count]]) {
        if (first === last) continue;
        gl.uniform1f(where.diameter, across * ratio);
        gl.drawElements(gl.POINTS, last - first, gl.UNSIGNED_INT, 4 * first);
      }
    },
  };
}

// A pixel is the most opaque point's that covers it: nothing is mixed, which is what makes this fast.
function byPixels(canvas) {
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  let [positions, colours, rows, faded] = [new Float32Array(0), new Uint32Array(0), new Uint32Array(0), 0];
  let [image, pixels] = [null, null];
  const stamps = new Map();
  const stampOf = (diameter) => {
    const key = diameter.toFixed(2);
    if (stamps.size > 40) stamps.clear();
    if (!stamps.has(key)) stamps.set(key, disc(diameter, image.width));
    return stamps.get(key);
  };
  const paint = (first, last, { reach, offsets, cover }, { scale, x, y, ratio }) => {
    const { width, height } = image;
    for (let k = first; k < last; k++) {
      const row = rows[k];
      const left = Math.round((positions[2 * row] * scale + x) * ratio - 0.5);
      const top = Math.round((positions[2 * row + 1] * scale + y) * ratio - 0.5);
      if (!(left >= reach && top >= reach && left < width - reach && top < height - reach)) continue;
      const [alpha, hue, middle] = [colours[row] >>> 24, colours[row] & 0xffffff, top * width + left];
      for (let j = 0; j < offsets.length; j++) {
        const over = (alpha * cover[j]) >> 8;
        const at = middle + offsets[j];
        if (pixels[at] >>> 24 <= over) pixels[at] = (over << 24) | hue;
      }
    }
  };
  return {
    kind: "pixels",
    positions: (values) => (positions = values),
    colours: (values, order, few) => ([colours, rows, faded] = [new Uint32Array(values.buffer), order, few]),
    resize(width, height, ratio) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      image = pen.createImageData(Math.max(1, canvas.width), Math.max(1, canvas.height));
      pixels = new Uint32Array(image.data.buffer);
      stamps.clear();
    },
    draw(view) {
      pixels.fill(0);
      paint(0, faded, stampOf(view.small * view.ratio), view);
      paint(faded, rows.length, stampOf(view.diameter * view.ratio), view);
      pen.putImageData(image, 0, 0);
    },
  };
}

// The pixels around a place that its disc covers, as steps in rows of `width`, and how much of each, of 256.
function disc(diameter, width) {
  const reach = Math.ceil(diameter / 2);
  const [offsets, cover] = [[], []];
  for (let y = -reach; y <= reach; y++)
    for (let x = -reach; x <= reach; x++) {
      const share = Math.min(1, Math.max(0, diameter / 2 - Math.hypot(x, y) + 0.5));
      if (share > 0.05) offsets.push(y * width + x), cover.push(Math.round(256 * share));
    }
  return { diameter, reach, offsets: Int32Array.from(offsets), cover: Uint16Array.from(cover) };
}
