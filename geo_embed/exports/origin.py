"""Whose backbone it is, and what its licence allows: what an export has to carry on."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geo_embed.console import warn
from geo_embed.files import read_bytes
from geo_embed.runs.recipe import answering_runs, read_recipe
from geo_embed.runs.run import Run

_CARD = "README.md"
_CARD_BYTES = 4 << 20
UNKNOWN = "unknown"
# Of backbones that people keep as directories without their card.
_KNOWN = {"geolocal/StreetCLIP": "cc-by-nc-4.0"}
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


@dataclass(frozen=True)
class Origin:
    """Where a backbone comes from.

    Attributes:
        base_model: its id on the hub; or the name of its directory, where that is all that is known.
        on_hub: whether `base_model` is an id.
        license: as its card has it, by the hub's own names; `unknown` where nothing says.
        license_name, license_link: of a license `other`, as its card has them.
        said_by: where the licence stands.
    """

    base_model: str
    on_hub: bool
    license: str = UNKNOWN
    license_name: str | None = None
    license_link: str | None = None
    said_by: str = ""

    @property
    def forbids_commerce(self) -> bool:
        """Whether the licence's name says so."""
        return "-nc" in self.license or "noncommercial" in f"{self.license_name}".lower()


def find_origin(run: Run, name: str | None) -> Origin:
    """The backbone that a run's was before it was fine-tuned, if it was, and its licence.

    Looked for in this order: the card in the directory that the backbone lies in, or that it was fine-tuned from; the card of its id in
    the local Hugging Face cache, then on the hub; what is known here of StreetCLIP.

    Args:
        run: any run.
        name: where the backbone lies, if it was given.
    """
    names: list[str | None] = [name]
    for part in answering_runs(run):
        # Of a run that was fine-tuned, its heads still name what they were fitted on.
        sets = read_recipe(part)[1]["parts"]
        names += [_model_of(entry).get("backbone_name") for entry in sets]
        names += [part.config.model.backbone_name, part.provenance["store"]["backbone"]]
    named = list(dict.fromkeys(str(each) for each in names if each))
    base_model = next(filter(None, map(_hub_id, named)), None)
    for each in named:
        card = _front_matter(each)
        if card and base_model is None and isinstance(card.get("base_model"), str):
            base_model = card["base_model"]
        if card and card.get("license"):
            where = each if Path(each).is_dir() else f"the card of {each}"
            known = base_model or Path(each).name
            texts = {key: str(card[key]) for key in ("license_name", "license_link") if card.get(key)}
            license = card["license"][0] if isinstance(card["license"], list) else card["license"]
            return Origin(known, base_model is not None, str(license), **texts, said_by=where)
    if base_model in _KNOWN:
        return Origin(base_model, True, _KNOWN[base_model], said_by=f"what geo_embed knows of {base_model}")
    return Origin(base_model or Path(named[-1]).name, base_model is not None)


def warn_of_license(origin: Origin) -> None:
    """Say what whoever passes an export on has to know."""
    if origin.license == UNKNOWN:
        warn(
            f"the licence of the backbone {origin.base_model} is unknown: nothing says that it may be passed on, or used; find it out, "
            "and write it into README.md"
        )
    elif origin.forbids_commerce:
        warn(
            f"the backbone {origin.base_model} is licensed {origin.license_name or origin.license}: not for commercial use, "
            "and neither is this export, or what is made of its answers to train others"
        )


def _model_of(part: dict[str, Any]) -> dict[str, Any]:
    heads = part["best"]["members"][0] if "best" in part else part["heads"]
    model: dict[str, Any] = heads["model"]
    return model


def _hub_id(name: str) -> str | None:
    """The id that a name is, or that a directory's path or name tells."""
    snapshot = _SNAPSHOT.search(name)
    if snapshot:
        return f"{snapshot[1]}/{snapshot[2]}"
    if _HUB_ID.fullmatch(name) and not Path(name).is_dir():
        return name
    return next((known for known in _KNOWN if known.split("/")[1].lower() == Path(name).name.lower()), None)


def _front_matter(name: str) -> dict[str, Any]:
    """What the card of a model says of itself; empty where there is none, or it can't be read."""
    from huggingface_hub import ModelCard

    try:
        text = _card_text(name)
        return {} if text is None else ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    # A card of somebody else's: YAML that isn't, metadata of other kinds.
    except Exception:
        return {}


def _card_text(name: str) -> str | None:
    from huggingface_hub import hf_hub_download

    directory = Path(name)
    if directory.is_dir():
        path = directory / _CARD
        return read_bytes(path, limit=_CARD_BYTES).decode() if path.is_file() else None
    if not _HUB_ID.fullmatch(name):
        return None
    for offline in (True, False):
        try:
            return Path(hf_hub_download(name, _CARD, local_files_only=offline)).read_text(encoding="utf-8")
        # Whatever the hub client raises without a network, a file or permission.
        except Exception:
            continue
    return None
