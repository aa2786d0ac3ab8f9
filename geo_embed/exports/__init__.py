"""Exports: a run and its backbone as one directory that predicts by itself. `export` makes it, `GeoPredictor` reads it."""
