"""The stages on Modal: an app of functions over the Python API, on one volume that holds the data, the stores and the runs.

    modal run -m geo_embed.scale.modal_app::upload --folder data/raw
    modal run -m geo_embed.scale.modal_app::pipeline --settings "training.seed=1"
    modal volume get geoguessr-data submissions

Modal imports this module on your machine to see what there is to run, and again in each container to run it.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import modal
from packaging.requirements import Requirement

import geo_embed
from geo_embed.console import counted
from geo_embed.data.samples import SPLITS

VOLUME_ROOT = Path("/data")
GPU = "A100-80GB"
HOURS = 8

# A step of 1,024 samples in two passes; where that is too much for the card's memory, passes are halved until it isn't.
FINETUNE = {"finetune.batch_size": 512, "finetune.accumulate": 2, "finetune.checkpointing": True}


def pinned_requirements() -> list[str]:
    """What geo_embed needs, in the versions that are installed on this machine: what ran here runs there."""
    needed = [Requirement(text) for text in requires("geo-embed") or []]
    # A local build's mark, as in 2.13.0+cpu, names no version that an index has.
    return [
        f"{requirement.name}=={version(requirement.name).partition('+')[0]}"
        for requirement in needed
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]


def _image() -> modal.Image:
    image = modal.Image.debian_slim(python_version="3.11")
    if modal.is_local():
        # Triton, behind torch.compile, needs a compiler. The package's outlines and pages aren't Python, and come along.
        image = image.apt_install("gcc", "libc6-dev").uv_pip_install(*pinned_requirements())
        image = image.env(
            {
                "HF_HOME": str(VOLUME_ROOT / "huggingface"),
                "TORCHINDUCTOR_CACHE_DIR": str(VOLUME_ROOT / "torchinductor"),
            }
        ).add_local_python_source("geo_embed", ignore=["**/__pycache__"])
    return image


app = modal.App("geoguessr-competition", image=_image())
# Version 2 has no limit on the number of files; four pictures a sample make many.
volume = modal.Volume.from_name("geoguessr-data", create_if_missing=True, version=2)
_STAGE: dict[str, Any] = {"volumes": {str(VOLUME_ROOT): volume}, "timeout": HOURS * 3600}


def volume_config(settings: str = "", **overrides: Any) -> geo_embed.Config:
    """The configuration of a stage: paths on the volume, then the user's settings, then the stage's own.

    Args:
        settings: `dotted.key=value` texts as after `--set`, separated by spaces and quoted as in a shell.
        overrides: by dotted key, for those that `settings` doesn't name.

    Raises:
        GeoError: an unknown key, or a value of the wrong type.
    """
    from geo_embed.settings import as_text, resolve

    paths = {
        "paths.data_root": str(VOLUME_ROOT / "raw"),
        "paths.cache_dir": str(VOLUME_ROOT / "cache"),
        "paths.runs_dir": str(VOLUME_ROOT / "runs"),
        "paths.submissions_dir": str(VOLUME_ROOT / "submissions"),
    }
    texts = [f"{key}={as_text(value)}" for key, value in {**paths, **overrides}.items()]
    return resolve(None, [*texts, *shlex.split(settings)])[0]


@contextmanager
def committed() -> Iterator[None]:
    """A stage that sees what the stages before it wrote, and whose own work is kept: also what it had done when it failed."""
    volume.reload()
    try:
        yield
    finally:
        volume.commit()


@app.local_entrypoint()
def upload(folder: str = "data/raw") -> None:
    """Put a dataset on the volume, once its tables are found in order; what is there already isn't sent again.

    Raises:
        GeoError: `data check` has findings.
    """
    problems = [
        problem
        for split in SPLITS
        for problem in geo_embed.check_data(geo_embed.get_config(paths={"data_root": folder}), split).problems
    ]
    if problems:
        raise geo_embed.GeoError(
            f"{counted(len(problems), 'problem')}, the first: {problems[0].message}",
            where=folder,
            hint=f"geo --set paths.data_root={shlex.quote(folder)} data check",
        )
    with volume.batch_upload(force=True) as batch:
        batch.put_directory(folder, "/raw")


@app.function(gpu=GPU, **_STAGE)
def extract(split: str = "all", settings: str = "") -> list[dict[str, Any]]:
    """Images to the embedding store, of one split or all that there are."""
    splits = SPLITS if split == "all" else (split,)
    with committed():
        config = volume_config(settings)
        return [_plain(geo_embed.extract(config, name)) for name in splits]


@app.function(**_STAGE)
def fit_heads(name: str = "heads", settings: str = "") -> dict[str, Any]:
    """The store to a run; no GPU is rented for it."""
    with committed():
        return _plain(geo_embed.fit_heads(volume_config(settings), name=name, overwrite=True))


@app.function(gpu=GPU, **_STAGE)
def finetune(
    name: str = "finetuned", init: str = "heads", settings: str = "", compile_backbone: bool = False
) -> dict[str, Any]:
    """Images to a run with a backbone of its own, from where a run's heads stand."""
    with committed():
        config = volume_config(settings, **FINETUNE, **{"finetune.compile": compile_backbone})
        if config.finetune.compile:
            _warm_up(config, name, init)
        return _plain(geo_embed.finetune(config, name=name, init=init))


def _warm_up(config: geo_embed.Config, name: str, init: str) -> None:
    """Train one step and forget it: the compiler's work is then on the volume before the training itself begins."""
    from geo_embed.settings import with_changes

    step = FINETUNE["finetune.batch_size"] * FINETUNE["finetune.accumulate"]
    config = with_changes(config, {"finetune.epochs": 1}, "the warm-up")
    run = geo_embed.finetune(config, name=f"{name}-warm-up", init=init, limit=step, overwrite=True).run
    geo_embed.remove_runs(config.paths.runs_dir, [run])


@app.function(gpu=GPU, **_STAGE)
def submit(run: str, settings: str = "") -> str:
    """A run's competition file, on the volume; test images that it needs embedded are embedded."""
    with committed():
        config = volume_config(settings)
        return str(geo_embed.submit(config, geo_embed.load_run(config.paths.runs_dir, run))[0])


@app.function(timeout=24 * 3600)
def pipeline(settings: str = "", with_finetune: bool = True, compile_backbone: bool = False) -> str:
    """Everything from the uploaded images to a competition file; returns where on the volume it lies."""
    extract.remote(settings=settings)
    fit_heads.remote(settings=settings)
    if not with_finetune:
        return submit.remote("heads", settings)
    finetune.remote(settings=settings, compile_backbone=compile_backbone)
    return submit.remote("finetuned", settings)


def _plain(result: Any) -> dict[str, Any]:
    """A stage's result as it goes back to your machine, whatever versions of pandas and torch are there."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(result).items()}
