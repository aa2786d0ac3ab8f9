"""The options that commands share: those before the command, and those that several have."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from geo_embed.cli.complete import complete_run
from geo_embed.config import FEATURES, Config, Device, Dtype, OnBadImage, OnDamagedImage, Tracker
from geo_embed.console import set_progress_seconds
from geo_embed.settings import resolve

# 141: what a shell says of a command that a closed pipe has ended.
FAULT, CHECK_FAILED, PIPE_CLOSED = 1, 3, 141

Split = Literal["train", "test", "all"]
Engine = Literal["local", "ray"]

SplitOption = Annotated[Split, typer.Option("--split", help="Which samples.")]

BackboneOption = Annotated[
    str | None, typer.Option("--backbone", help="Hub id, model directory, or the name of an import.")
]

BackbonesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--backbone",
        help="Hub id, model directory, or the name of an import; repeat it to take several together.",
    ),
]

FeaturesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--feature",
        metavar=f"[{'|'.join(FEATURES)}|all]",
        help="Which feature of a store heads are fitted on; repeat it, or take all that it has, to fit them on several together.",
    ),
]

DeviceOption = Annotated[Device | None, typer.Option("--device", help="Where models run.")]

DtypeOption = Annotated[
    Dtype | None,
    typer.Option("--dtype", help="Precision of the backbone."),
]

SeedOption = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of everything random but the split, which has training.split_seed."),
]

BatchOption = Annotated[int | None, typer.Option("--batch-size", help="Items per step.")]

WorkersOption = Annotated[int | None, typer.Option("--workers", help="Decoding threads.")]

BadImageOption = Annotated[
    OnBadImage | None,
    typer.Option("--on-bad-image", help="What to do with pictures that can't be read."),
]

DamagedOption = Annotated[
    OnDamagedImage | None,
    typer.Option(
        "--on-damaged-image",
        help="What to do with pictures that decode, but not without a loss; default: as with those that can't be read.",
    ),
]

LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first samples of the split.")
]

StoreOption = Annotated[
    Path | None, typer.Option("--store", help="A store by its path, whatever the settings.")
]

RunArgument = Annotated[
    str | None,
    typer.Argument(help="A run's name or directory; the newest if left out.", autocompletion=complete_run),
]

TtaOption = Annotated[
    bool | None,
    typer.Option(
        "--tta",
        help="Average over a few sure variants of each picture, those that the run's augmentation allows for; each is embedded once and cached.",
    ),
]

EngineOption = Annotated[
    Engine, typer.Option("--engine", help="In this process, or on Ray: `pip install 'geo-embed[ray]'`.")
]

RayAddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="The Ray cluster that this machine belongs to, or `auto`; with --engine ray. A local one if left out.",
    ),
]

NoExtractOption = Annotated[
    bool,
    typer.Option("--no-extract", help="Refuse where embeddings are missing, instead of making them first."),
]

NameOption = Annotated[str | None, typer.Option("--name", help="Name of the run to write.")]

OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a run of this name.")]


TrackOption = Annotated[
    Tracker | None,
    typer.Option(
        "--track", help="Show scores there, too; a package to be installed. `local`: in the run alone."
    ),
]


@dataclass
class Globals:
    """The options before the command, set once a process.

    Attributes:
        file: `--config`.
        settings: every `--set`.
        command: the whole command line, as a run's provenance keeps it.
        commands: the names of all commands and groups, which a hint may tell to type.
        as_json: print one JSON object.
        verbose: show tracebacks.
    """

    file: Path | None = None
    settings: list[str] = field(default_factory=list)
    command: tuple[str, ...] = ()
    commands: frozenset[str] = frozenset()
    as_json: bool = False
    verbose: bool = False

    def config(self, **overrides: Any) -> Config:
        """The effective settings under a command's own options, written group__key."""
        named = overrides.get("model__backbone_name")
        if isinstance(named, str | list) and named:
            # What is named takes the place of all in the settings, one or several.
            names = [named] if isinstance(named, str) else named
            several = names if len(names) > 1 else ()
            overrides |= {"model__backbone_name": names[0], "model__backbones": several}
        features = overrides.get("model__head_features")
        if features is not None and len(features) == 1 and features[0] in ("own", "all"):
            overrides["model__head_features"] = features[0]
        config = resolve(self.file, self.settings, {k.replace("__", "."): v for k, v in overrides.items()})[0]
        set_progress_seconds(config.tracking.progress_seconds)
        return config


GLOBALS = Globals()


def splits_of(split: str) -> list[str]:
    from geo_embed.data.samples import SPLITS

    return list(SPLITS) if split == "all" else [split]


def chosen_engine(engine: Engine, ray_address: str | None) -> Engine:
    """The engine, once what goes with it is there alone."""
    if ray_address is not None and engine != "ray":
        raise typer.BadParameter("goes together with --engine ray", param_hint="--ray-address")
    from geo_embed.devices import is_torchrun

    if engine == "ray" and is_torchrun():
        # Each of its processes would begin a cluster, and they would take the parts from each other.
        raise typer.BadParameter(
            "under torchrun every process would begin Ray: leave one of the two out", param_hint="--engine"
        )
    return engine
