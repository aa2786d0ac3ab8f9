"""What a person looks at: `plot` draws a figure of a run, `explore_data` writes a page about a dataset, `outlines` gives the outlines of classes for maps."""
