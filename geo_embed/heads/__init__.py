"""From the views of a sample to an answer: fusions, heads, losses, decisions."""
