"""How the learning rate moves."""

import math


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate: a line from 0 to 1 over the first share `warmup` of `steps`, then half a cosine to 0."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
