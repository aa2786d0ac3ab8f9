// Draws geo_embed/reporting/atlas/countries.json: the countries of npm world-atlas, with fewer points.
//   npm install world-atlas@2.0.2 topojson-simplify@3.0.3 topojson-client@3.1.0 && node countries.mjs OUT
import fs from "fs";
import { presimplify, simplify, sphericalTriangleArea } from "topojson-simplify";
import { quantize } from "topojson-client";

const LEAST = 2e-6; // steradians that a corner's triangle must span: some 80 km²
const RING = 8; // corners below which a ring keeps those that it has

const world = JSON.parse(fs.readFileSync("node_modules/world-atlas/countries-50m.json"));
delete world.objects.land;
const weighed = presimplify(world, sphericalTriangleArea);
const thin = simplify(weighed, LEAST);
const polygons = (shape) => (shape.type === "Polygon" ? [shape.arcs] : shape.arcs);
for (const shape of world.objects.countries.geometries)
  for (const ring of polygons(shape).flat()) {
    const arcs = ring.map((arc) => (arc < 0 ? ~arc : arc));
    const corners = arcs.reduce((sum, arc) => sum + thin.arcs[arc].length, 0);
    // A small island or country would collapse: it keeps its corners.
    if (corners < RING) for (const arc of arcs) thin.arcs[arc] = weighed.arcs[arc].map((p) => p.slice(0, 2));
  }
fs.writeFileSync(process.argv[2], JSON.stringify(quantize(thin, 1e5)) + "\n");
