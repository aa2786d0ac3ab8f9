"""Stage 1, images to cache: `extract`."""
