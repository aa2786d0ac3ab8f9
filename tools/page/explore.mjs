// What the explorer's modules use of d3-geo and of an Arrow reader, as one module.
export { geoAlbersUsa, geoConicEqualArea, geoEqualEarth, geoPath } from "d3-geo";
export { tableFromIPC } from "@uwdata/flechette";
