# /// script
# requires-python = ">=3.11"
# dependencies = ["geo-embed"]
# ///
"""The whole pipeline as one script, for a rented machine that takes scripts:

    uv run uv_job.py data/raw --out results
    hf jobs uv run --flavor a100-large --timeout 8h --secrets HF_TOKEN uv_job.py hf://datasets/OWNER/NAME --push OWNER/RESULTS

A second start goes on where the first one ended, as long as the folder `--out` is the same.
"""

from pathlib import Path
from typing import Annotated

import typer

HUB = "hf://datasets/"


def main(
    data: Annotated[str, typer.Argument(help=f"folder of the dataset, or {HUB}OWNER/NAME")],
    out: Annotated[Path, typer.Option(help="folder for the stores, the runs and the submission")] = Path(),
    push: Annotated[
        str | None,
        typer.Option(help="OWNER/NAME: private dataset on the hub that gets the runs and the submission"),
    ] = None,
    with_finetune: Annotated[bool, typer.Option(help="also train the backbone")] = True,
    settings: Annotated[list[str] | None, typer.Option("--set", help="dotted.key=value, repeatable")] = None,
) -> None:
    """Embed both splits, fit heads, train the backbone, and write a submission."""
    import geo_embed
    from geo_embed.console import complain
    from geo_embed.data.samples import SPLITS
    from geo_embed.settings import resolve

    if data.startswith(HUB):
        from huggingface_hub import snapshot_download

        data = snapshot_download(data.removeprefix(HUB), repo_type="dataset")
    paths = {"data_root": data} | {
        key: str(out / folder)
        for key, folder in (("cache_dir", "cache"), ("runs_dir", "runs"), ("submissions_dir", "submissions"))
    }
    try:
        config, _ = resolve(None, settings or [], {"paths": paths})
        for split in SPLITS:
            geo_embed.extract(config, split)
        run = geo_embed.fit_heads(config, name="heads", overwrite=True).run
        if with_finetune:
            run = geo_embed.finetune(config, name="finetuned", init=run).run
        submission, _ = geo_embed.submit(config, geo_embed.load_run(config.paths.runs_dir, run))
    except geo_embed.GeoError as error:
        complain(f"error: {error}")
        if error.hint:
            complain(f"hint: {error.hint}")
        raise typer.Exit(1) from error
    if push:
        from huggingface_hub import HfApi

        hub = HfApi()
        hub.create_repo(push, repo_type="dataset", private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=push,
            repo_type="dataset",
            folder_path=out,
            allow_patterns=["runs/**", "submissions/**"],
            ignore_patterns=["**/checkpoints/**"],
        )
    typer.echo(submission)


if __name__ == "__main__":
    typer.run(main)
