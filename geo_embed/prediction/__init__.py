"""From a run to answers: `predict_split`, `evaluate`, `ensemble`, `submit`."""
