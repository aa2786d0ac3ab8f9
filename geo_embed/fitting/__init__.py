"""Stage 2, cache to run: `fit_heads`, `sweep`, `check_leaks`."""
