"""What commands print: a result as JSON or as a table for people."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from geo_embed.cli.options import GLOBALS
from geo_embed.console import counted, harmless, harmless_json, is_quiet, say, show

# How the columns end whose numbers are names, not counts.
_NAMES = ("id", "idx", "class", "seed", "fold", "epoch", "year")


def print_result(result: Any, rows: Iterable[tuple[str, Any]]) -> None:
    """A command's result: JSON of `result`, or `rows` as a table for people."""
    if GLOBALS.as_json:
        print(harmless_json(json.dumps(plain(result), allow_nan=False, ensure_ascii=False)))
        return
    shown = [(harmless(name), str(value)) for name, value in rows]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        show(f"{name:<{width}}  {value}")


def flush() -> None:
    """Let what was printed be read at once, by whoever waits at the other end of a pipe while the command goes on."""
    sys.stdout.flush()


def print_made(result: Any, rows: Iterable[tuple[str, Any]], *then: str) -> None:
    """What a command made: as `print_result`, and nothing for people with `-q`; and on stderr the command that comes next.

    Args:
        result, rows: as in `print_result`.
        then: the next command's words after `geo`; none where nothing follows.
    """
    if GLOBALS.as_json or not is_quiet():
        print_result(result, rows)
    print_next(*then)


def print_next(*words: str) -> None:
    """Tell people, on stderr, the command that comes next: its words after `geo`."""
    if words and not GLOBALS.as_json:
        say(f"next: {with_given_options(shlex.join(['geo', *words]))}")


def print_splits(split: str, results: list[Any], rows: Callable[[Any], Iterable[tuple[str, Any]]]) -> None:
    """One result, or with `all` one per split: `{"splits": […]}`."""
    if GLOBALS.as_json:
        print_result({"splits": results} if split == "all" else results[0], [])
        return
    for result in results:
        if split == "all":
            name = result["split"] if isinstance(result, dict) else result.split
            show(f"[{name}]")
        print_result(result, rows(result))


def print_table(rows: list[dict[str, Any]]) -> None:
    """Rows as columns: kilometres, geoscores and seconds with one digit, shares with four, what isn't known as a dash."""

    def text(name: str, value: Any) -> str:
        if value is None:
            return "–"
        if isinstance(value, float):
            rounded = name.endswith("km") or name in ("geoscore", "seconds")
            return f"{value:,.1f}" if rounded else f"{value:.4f}"
        # An id is a name, though it be a number.
        counted = isinstance(value, int) and not name.endswith(_NAMES)
        return f"{value:,}" if counted else harmless(str(value))

    if not rows:
        show("none")
        return
    cells = [
        [harmless(name) for name in rows[0]],
        *([text(name, value) for name, value in row.items()] for row in rows),
    ]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    numbers = [not isinstance(value, str) for value in rows[0].values()]
    for row in cells:
        columns = zip(row, widths, numbers, strict=True)
        show("  ".join(f"{cell:{'>' if right else '<'}{width}}" for cell, width, right in columns).rstrip())


def print_findings(errors: list[str], warnings: list[str]) -> None:
    if not GLOBALS.as_json:
        for finding in errors:
            show(f"error: {finding}")
        for finding in warnings:
            show(f"warning: {finding}")


def given_options() -> list[str]:
    """The `--config` and `--set` of this command line."""
    options = [] if GLOBALS.file is None else ["--config", str(GLOBALS.file)]
    return options + [word for setting in GLOBALS.settings for word in ("--set", setting)]


def with_given_options(text: str) -> str:
    """A text whose commands have the `--config` and `--set` that this command line had, so that pasting them works.

    `geo config` is left as it is: it is hinted at where one of these very options is at fault.
    """
    options = given_options()
    commands = "|".join(map(re.escape, GLOBALS.commands - {"config"}))
    command = re.compile(rf"(?<![\w/.-])geo (?=(?:{commands})(?![\w-]))")
    return command.sub(lambda _: f"geo {shlex.join(options)} ", text) if options else text


def chosen_rows(score: float | None, reported: float | None) -> list[tuple[str, str]]:
    """What a choice scores on the samples that made it; none where they made none, or where it scores what is reported: every
    part of them chose the same.
    """
    if score is None or reported is None or f"{score:.4f}" == f"{reported:.4f}":
        return []
    return [("as chosen", f"{score:.4f} on the samples that chose the epoch: too good")]


def sample_rows(directory: Path, samples: int, run: str | None = None) -> list[tuple[str, str]]:
    """Where the results of a run's held-out samples lie one by one, what shows the worst of them, and what makes a page of it all;
    `run` is what to call it, if not by its name.
    """
    if not samples:
        return []
    from geo_embed.runs.run import predictions_path

    called = run or directory.name
    worst = with_given_options(shlex.join(["geo", "evaluate", called, "--by", "worst"]))
    return [
        ("one by one", f"{predictions_path(directory, 'val')}; the worst first: {worst}"),
        ("as a page", with_given_options(shlex.join(["geo", "report", called]))),
    ]


def twin_rows(twins: dict[str, Any] | None, samples: int) -> list[tuple[str, str]]:
    """How many of the held-out samples have a near twin in training, and the score of the others; nothing where that isn't known."""
    if not samples or twins is None:
        return []
    without = twins["score_without"]
    leaks_hint = f"; which: {with_given_options('geo data leaks')}" if twins["samples"] else ""
    alone = "" if without is None or not twins["samples"] else f"; score without them {without:.4f}"
    count = counted(twins["samples"], "held-out sample has", "held-out samples have")
    return [("near twins", f"{count} one in training{alone}{leaks_hint}")]


def metric_rows(scores: dict[str, Any]) -> list[tuple[str, str]]:
    """Metrics for people; those of a run of an earlier version lack some."""
    if not scores["samples"]:
        return [("samples", "0: nothing was held out")]
    within = ", ".join(f"{share:.0%} within {km} km" for km, share in scores["within_km"].items() if share)
    low, high = scores.get("score_interval", (None, None))
    between = "" if low is None else f" ({low:.3f}–{high:.3f})"
    parts = f"states {scores['state_score']:.4f}, GPS {scores['gps_score']:.4f}"
    return [
        ("score", f"{scores['score']:.4f}{between}, {parts}"),
        *([("geoscore", f"{scores['geoscore']:,.0f} of 5,000")] if "geoscore" in scores else []),
        ("states", f"top-1 {scores['top1']:.1%}, top-5 {scores['top5']:.1%}"),
        ("distance", f"median {scores['median_km']:,.0f} km, mean {scores['mean_km']:,.0f} km"),
        ("", within),
        ("calibration", f"nll {scores['nll']:.3f}, ece {scores['ece']:.3f}"),
        ("samples", f"{scores['samples']:,}"),
    ]


def detailed_rows(scores: dict[str, Any]) -> list[tuple[str, str]]:
    """Metrics for people who look at one run closely: also the ranks of the truth, and how far distances spread."""
    rows = metric_rows(scores)
    if not scores["samples"]:
        return rows
    ranks = ", ".join(f"{rank} {share:.1%}" for rank, share in scores["rank_rates"].items())
    spread = f"{scores['min_km']:,.1f} to {scores['max_km']:,.1f} km, standard deviation {scores['std_km']:,.1f} km"
    if scores.get("trained_on"):
        rows.insert(1, ("", "trained on these samples: not a score to believe"))
    calibration = next(place for place, (name, _) in enumerate(rows) if name == "calibration")
    return [*rows[:calibration], ("spread", spread), ("true rank", ranks), *rows[calibration:]]


def protocol_rows(result: dict[str, Any]) -> list[dict[str, str]]:
    """A benchmark's table for people: each measure, its value, and between what it lies."""

    def row(name: str, value: float, interval: list[float | None], form: str, of: str = "") -> dict[str, str]:
        low, high = interval
        between = "–" if low is None or high is None else f"{low:{form}} to {high:{form}}"
        return {"measure": name, "value": f"{value:{form}}", "95 %": between} | (
            {"samples": of} if of else {}
        )

    intervals = result["intervals"]
    if result["protocol"] == "im2gps3k":
        rows = [
            row(f"within {int(km):,} km", share, intervals["within_km"][km], ".1%")
            for km, share in result["within_km"].items()
        ]
        return [*rows, row("median km", result["median_km"], [None, None], ",.1f")]
    return [
        row("geoscore", result["geoscore"], intervals["geoscore"], ",.0f", f"{result['samples']:,}"),
        row("mean km", result["mean_km"], intervals["mean_km"], ",.1f", f"{result['samples']:,}"),
        *(
            row(name.replace("_", " "), area["accuracy"], area["interval"], ".1%", f"{area['samples']:,}")
            for name, area in result["areas"].items()
            if area["samples"]
        ),
    ]


def readable_size(count: float) -> str:
    from rich.filesize import decimal

    return decimal(int(count))


def plain(value: Any) -> Any:
    """Dataclasses, settings and paths as what JSON knows."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
