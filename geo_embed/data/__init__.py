"""CSVs and pixels: `load_samples`, `check_data`, and what is held out."""
