"""What `--preset best` will try of so many samples, and about how long that takes: without torch, so that it can be said at once."""

from pathlib import Path

from geo_embed.config import Training
from geo_embed.console import counted

# Below so many samples there is nothing to choose by; up to so many, folds carry the inner validation, and members are mixed.
TOO_FEW, SMALL = 40, 4000

# Of the default budget: seconds at the least, and samples per second more, up to so many and beyond.
_BUDGET_START, _BUDGET_ROWS, _BUDGET_MANY, _BUDGET_MANY_ROWS = 12.0, 2000.0, 20_000, 3000.0
# Among few samples the default budget ends nothing: it says what their race takes.
_FEW_START, _FEW_ROWS = 4.0, 500.0


def budget_for(n: int, budget: float | None) -> float:
    """Seconds for n rows: those that are given, else what a race of few takes, and of many so many that what more bring is small."""
    if budget is not None:
        return budget
    if n <= SMALL:
        return _FEW_START + n / _FEW_ROWS
    return _BUDGET_START + min(n, _BUDGET_MANY) / _BUDGET_ROWS + max(0, n - _BUDGET_MANY) / _BUDGET_MANY_ROWS


def outlook(n: int, budget: float | None) -> str:
    """What one fit to n samples will try."""
    if n < TOO_FEW:
        return f"best: one candidate, since {counted(n, 'sample is', 'samples are')} too few to choose by"
    how = "out of fold, and their mixture" if n <= SMALL else "on a part, and the winner on all samples"
    return f"best: candidates race on {counted(n, 'sample')}, {how}; about {budget_for(n, budget):,.0f} s on two cores"


def command_outlook(csv: Path, training: Training, limit: int | None) -> str | None:
    """What `geo fit-heads` tries, and about how long, by the lines of the training CSV; None where there is none.

    >>> command_outlook(Path("no such file"), Training(preset="best"), None)
    """
    try:
        with csv.open("rb") as lines:
            listed = sum(1 for line in lines if line.strip()) - 1
    except OSError:
        return None
    n = max(0, listed if limit is None else min(limit, listed))
    fits = training.seeds * training.folds
    if training.preset != "best":
        many = "" if fits == 1 else f"{fits} times "
        return f"{training.preset}: some {counted(n, 'sample')} of {csv.name}; {many}at most {training.epochs:,} epochs"
    each = budget_for(n, training.budget_seconds)
    times = "" if fits == 1 else f"{fits} times "
    return f"best: some {counted(n, 'sample')} of {csv.name}; {times}about {each:,.0f} s on two cores"
