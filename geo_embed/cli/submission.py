"""Submissions, wherever they came from: `geo submission validate`, `note`, `log`, `send`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geo_embed.cli.options import CHECK_FAILED, GLOBALS
from geo_embed.cli.show import print_result, print_table
from geo_embed.console import show

if TYPE_CHECKING:
    from geo_embed.submissions.check import Finding
    from geo_embed.submissions.log import Entry

submission_app = typer.Typer(no_args_is_help=True, help="Look at submissions, wherever they came from.")

# Places of a finding that a terminal shows.
_SHOWN = 8

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
    width = len(str(max(finding.rows[:_SHOWN], default=0)))
    for place in range(min(finding.count, _SHOWN)):
        row = f"row {finding.rows[place]:>{width}}  " if finding.rows else ""
        sample = finding.sample_ids[place] or "(none)"
        value = f"  {finding.values[place]!r:.60}" if finding.values else ""
        show(f"    {row}sample {sample:.60}{value}")
    if finding.count > _SHOWN:
        show(f"    … and {finding.count - _SHOWN:,} more: --json names them all")


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
    sent = ", ".join(dict.fromkeys(each["competition"] for each in entry.sent))
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
            ("sent", f"{sent.file}, {sent.rows:,} rows, to {sent.competition}"),
            *(("kaggle", line) for line in sent.answer.splitlines()),
            ("next", f"geo submission note {sent.file} --score SCORE, once the leaderboard has it"),
        ],
    )
