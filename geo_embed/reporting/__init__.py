"""What a person looks at: `plot` draws a figure of a run, `outlines` gives the outlines of classes for maps."""
