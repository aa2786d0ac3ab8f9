"""A run to play with: `explore` serves a page over a run, its cache and its pictures, and a JSON API."""
