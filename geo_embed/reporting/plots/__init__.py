"""Figures: one file a kind; every function takes arrays and returns a Matplotlib Figure."""
