"""Submissions, wherever they came from: `geo submission validate`, `analyze`, `compare`, `note`, `log`, `send`."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geo_embed.cli.options import CHECK_FAILED, GLOBALS
from geo_embed.cli.show import print_result, print_table, with_given_options
from geo_embed.console import counted, show

if TYPE_CHECKING:
    from geo_embed.submissions.check import Finding
    from geo_embed.submissions.log import Entry

submission_app = typer.Typer(no_args_is_help=True, help="Look at submissions, wherever they came from.")

# Places of a finding that a terminal shows.
_SHOWN = {"error": 8, "warning": 3}

FileArgument = Annotated[Path, typer.Argument(help="A CSV.")]


@submission_app.command("validate", epilog="Example: `geo submission validate submissions/first.csv`")
def _submission_validate(file: FileArgument) -> None:
    """Check a submission against the template, row by row. Exits with 3 where the competition would refuse it."""
    from geo_embed.submissions.check import validate

    verdict = validate(GLOBALS.config(), file)
    result = {
        "submission": file,
        "valid": verdict.valid,
        "rows": verdict.rows,
        "errors": verdict.errors,
        "warnings": verdict.warnings,
        "findings": [finding.describe() for finding in verdict.findings],
    }
    print_result(result, [("rows", f"{verdict.rows:,}"), ("valid", "yes" if verdict.valid else "no")])
    if not GLOBALS.as_json:
        for finding in sorted(verdict.findings, key=lambda finding: finding.severity):
            _print_finding(finding)
    if not verdict.valid:
        raise typer.Exit(CHECK_FAILED)


def _print_finding(finding: "Finding") -> None:
    show(f"{finding.severity}: {finding.title}")
    most = _SHOWN[finding.severity]
    width = len(str(max(finding.rows[:most], default=0)))
    # The id is there already.
    with_values = finding.values and finding.column != "sample_id"
    for place in range(min(finding.count, most)):
        row = f"row {finding.rows[place]:>{width}}  " if finding.rows else ""
        sample = finding.sample_ids[place] or "(none)"
        value = f"  {finding.values[place]!r:.60}" if with_values else ""
        show(f"    {row}sample {sample:.60}{value}")
    if finding.count > most:
        show(f"    … and {finding.count - most:,} more: --json names them all")


@submission_app.command("analyze", epilog="Example: `geo submission analyze submissions/first.csv`")
def _submission_analyze(
    file: FileArgument,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Lines of each list.")] = 5,
) -> None:
    """Look at a submission as a whole: states against training, points, ranks, repeats, confidence, points outside their states."""
    from geo_embed.reporting.submission_analysis import FAR_KM, analyze_submission

    analysis = analyze_submission(GLOBALS.config(), file, limit=limit)
    if GLOBALS.as_json:
        print_result(analysis, [])
        return
    states, points, ranks = analysis["states"], analysis["coordinates"], analysis["ranks"]
    repeats, sure, outside = analysis["repeated_rows"], analysis["confidence"], analysis["outside"]
    used = ", ".join(f"{rank['states']:,}" for rank in ranks["ranks"])
    empty = ", ".join(f"{rank['empty']:,}" for rank in ranks["ranks"])
    never = len(states["never_first"])
    rows = [
        ("rows", f"{analysis['rows']:,}"),
        (
            "states",
            f"total variation from training {states['total_variation']:.3f}, {states['by_chance']:.3f} by chance alone; "
            f"{never:,} of the training states never come first",
        ),
        ("ranks", f"states in use {used}; samples without one {empty}"),
        ("", f"{counted(ranks['repeated_states'], 'sample with', 'samples with')} a repeated state"),
        ("points", f"latitude {_range_of(points['latitude'])}, longitude {_range_of(points['longitude'])}"),
        (
            "",
            f"{points['without']:,} missing, {points['at_zero']:,} at (0, 0), {points['outside_region']:,} outside the training region, "
            f"{points['shared']:,} where another sample's is",
        ),
        (
            "answers",
            f"{counted(repeats['same_answer'], 'sample with', 'samples with')} the same answer as another one",
        ),
    ]
    if sure is None:
        rows.append(("confidence", "no run is known whose probabilities these are"))
    else:
        rows.append(
            (
                "confidence",
                f"{sure['mean']:.3f} on average, above 0.9 {sure['above_90_percent']:.1%}, below 0.5 {sure['below_50_percent']:.1%}; "
                f"{sure['run']} itself expects a state score of {sure['expected_state_score']:.4f}",
            )
        )
    if outside["share"] is not None:
        rows.append(
            (
                "outside",
                f"{counted(outside['outside'], 'point lies outside its', 'points lie outside their')} first state ({outside['share']:.1%}; of training places "
                f"{outside['train_share']:.1%}), {outside[f'beyond_{FAR_KM:g}_km']:,} of them by more than {FAR_KM:g} km",
            )
        )
    print_result(analysis, rows)
    shown_states = [
        {
            "state": row["state"],
            "first": row["first"],
            "share": row["share"],
            "in training": row["train_share"],
            "difference": row["difference"],
        }
        for row in states["table"]
    ]
    for title, table in (
        ("states that differ most from training", shown_states),
        ("points that are repeated", points["most_repeated"]),
        ("points outside their first state, by state", outside["by_state"]),
        ("points farthest from their first state", outside["farthest"]),
    ):
        if table:
            show()
            show(f"[{title}]")
            print_table(table[:limit])
            if len(table) > limit:
                show(f"… and {len(table) - limit:,} more: --limit, or --json for all states")


def _range_of(values: dict[str, float | None]) -> str:
    return "–" if values["min"] is None else f"{values['min']:.2f}…{values['max']:.2f}"


@submission_app.command(
    "compare", epilog="Example: `geo submission compare first.csv second.csv --html difference.html`"
)
def _submission_compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A CSV.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Most different samples that are listed.")
    ] = 10,
    out: Annotated[
        Path | None, typer.Option("--out", help="A file for all samples: .csv or .parquet.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="A page for the comparison.")] = None,
) -> None:
    """Compare two submissions: agreement per rank, distances, and by how much their scores can differ."""
    from geo_embed.data.outputs import PAGES, check_output
    from geo_embed.prediction.writing import write_table, writer_for
    from geo_embed.reporting.submission_comparison import compare_submissions
    from geo_embed.reporting.submission_page import write_comparison_page

    config = GLOBALS.config()
    if out is not None:
        writer_for(out)
        check_output(config.paths, out)
    if html is not None:
        check_output(config.paths, html, PAGES)
    comparison = compare_submissions(config, a, b)
    if out is not None:
        write_table(out, comparison.samples)
    if html is not None:
        write_comparison_page(html, comparison, limit=limit)
    statistics = comparison.statistics
    listed = comparison.samples.head(limit).to_dict("records")
    # A sample without a point in both has no distance, which JSON says as null.
    different = [{**row, **{k: None for k, v in row.items() if v != v}} for row in listed]
    print_result(
        {**statistics, "most_different": different, "table": out, "page": html},
        [
            *_compared_rows(statistics),
            *([] if out is None else [("table", out)]),
            *([] if html is None else [("page", html)]),
        ],
    )
    if not GLOBALS.as_json:
        show()
        show("[most different samples]")
        print_table(
            [
                {
                    "sample": str(row["sample_id"]),
                    "difference": row["difference"],
                    "km": row["km"],
                    "states of A": row["states_a"],
                    "states of B": row["states_b"],
                }
                for row in different
            ]
        )


def _compared_rows(statistics: dict[str, Any]) -> list[tuple[str, str]]:
    def side(name: str) -> str:
        known = statistics[name]
        run = "" if known["run"] is None else f", of {known['run']}"
        scores = {"local": known["local"], "public": known["public"]}
        score_text = "".join(f", {what} {score:.4f}" for what, score in scores.items() if score is not None)
        return f"{known['submission']}{run}{score_text}"

    ranks = ", ".join(
        f"{rank['rank']} {'–' if rank['same'] is None else format(rank['same'], '.1%')}"
        for rank in statistics["ranks"]
    )
    km, most, expected = statistics["km"], statistics["effect"]["most"], statistics["effect"]["expected"]
    distance = "no points to compare"
    if km["mean"] is not None:
        tail = ", ".join(f"{float(share):.0%} {value:,.1f}" for share, value in km["quantiles"].items())
        distance = f"mean {km['mean']:,.1f} km, median {km['median']:,.1f} km; quantiles {tail}"
    rows = [
        ("A", side("a")),
        ("B", side("b")),
        (
            "samples",
            f"{statistics['samples']:,} in both, {statistics['only_a']:,} in A alone, {statistics['only_b']:,} in B alone, {statistics['same_answers']:,} answered alike",
        ),
        ("same rank", ranks),
        (
            "same set",
            f"{statistics['same_states']:.1%}; {statistics['shared_states']:.2f} states in common on average",
        ),
        ("distance", distance),
        (
            "effect",
            f"scores differ by {most['score']:.4f} at most: states {most['state_score']:.4f}, GPS {most['gps_score']:.4f}",
        ),
    ]
    if expected is not None:
        by = " and ".join(dict.fromkeys(expected["by"]))
        alone = " alone, which favours its own file" if len(expected["by"]) == 1 else ""
        rows.append(
            (
                "expected",
                f"state score of A − B {expected['difference']:+.4f}, by the probabilities of {by}{alone}",
            )
        )
    return rows


@submission_app.command("note", epilog="Example: `geo submission note submissions/first.csv --score 0.8731`")
def _submission_note(
    file: FileArgument,
    score: Annotated[float, typer.Option("--score", help="On the public leaderboard.")],
    private: Annotated[float | None, typer.Option("--private", help="On the private one.")] = None,
    text: Annotated[str, typer.Option("--text", help="Whatever is worth remembering.")] = "",
) -> None:
    """Keep what the competition said of a file. No `geo submit` overwrites it from then on."""
    from geo_embed.submissions.log import note_submission

    entry = note_submission(GLOBALS.config(), file, score=score, private=private, text=text)
    local = "no run is known to have written it"
    if entry.run is not None:
        difference = "" if entry.difference is None else f", public {entry.difference:+.4f}"
        local = f"{_local(entry)} of {entry.run} on held-out samples{difference}"
    print_result(
        {"noted": asdict(entry)},
        [("submission", file), ("public", f"{score:.4f}"), ("local", local)],
    )


@submission_app.command("log", epilog="Example: `geo submission log`")
def _submission_log() -> None:
    """List submissions with the scores of their runs and those that were noted, and say which files have changed."""
    from geo_embed.submissions.log import submission_log

    entries = submission_log(GLOBALS.config())
    if GLOBALS.as_json:
        print_result({"log": [asdict(entry) for entry in entries]}, [])
    elif entries:
        print_table([_log_row(entry) for entry in entries])
        for entry in entries:
            if entry.state != "unchanged":
                happened = "is not there any more" if entry.state == "missing" else "has changed"
                show(f"{entry.file} {happened}: content {entry.sha256[:8]} is that of {entry.when}")
    else:
        show("nothing was written, noted or sent yet")


def _log_row(entry: "Entry") -> dict[str, Any]:
    sent = ", ".join(dict.fromkeys(submission["competition"] for submission in entry.sent))
    return {
        "file": str(entry.file) + ("" if entry.state == "unchanged" else f" ({entry.state})"),
        "rows": entry.rows,
        "content": entry.sha256[:8],
        "run": entry.run or "–",
        "local": _local(entry),
        "public": _score(entry.public),
        "difference": "–" if entry.difference is None else f"{entry.difference:+.4f}",
        "private": _score(entry.private),
        "sent": sent or "–",
        "when (UTC)": entry.when.removesuffix("+00:00").replace("T", " "),
        "text": "; ".join(entry.texts),
    }


def _score(score: float | None) -> str:
    return "–" if score is None else f"{score:.4f}"


def _local(entry: "Entry") -> str:
    low, high = entry.interval
    return _score(entry.score) + ("" if low is None else f" ({low:.3f}–{high:.3f})")


@submission_app.command(
    "send", epilog='Example: `geo submission send submissions/first.csv -m "first" --competition NAME`'
)
def _submission_send(
    file: FileArgument,
    message: Annotated[str, typer.Option("--message", "-m", help="What to say of it there.")],
    competition: Annotated[
        str | None,
        typer.Option(
            "--competition",
            help="As in kaggle.com/competitions/NAME; default: the setting inference.competition.",
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Send what was sent there already.")] = False,
) -> None:
    """Check a submission and send it through the `kaggle` command, which has the key."""
    from geo_embed.submissions.send import send_submission

    sent = send_submission(GLOBALS.config(), file, message, competition=competition, again=again)
    print_result(
        sent,
        [
            ("sent", f"{sent.file}, {counted(sent.rows, 'row')}, to {sent.competition}"),
            *(("kaggle", line) for line in sent.answer.splitlines()),
            (
                "next",
                with_given_options(f"geo submission note {shlex.quote(str(sent.file))} --score SCORE"),
            ),
        ],
    )
