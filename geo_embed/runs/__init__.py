"""A run on disk: `load_run`, and who writes one."""
