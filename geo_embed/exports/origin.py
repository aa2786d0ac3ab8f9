"""Whose backbone it is, and what its licence allows: what an export has to carry on."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geo_embed.console import warn
from geo_embed.errors import GeoError
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
        card, is_id = _front_matter(each)
        if base_model is None:
            base_model = each if is_id else card.get("base_model")
            base_model = base_model if isinstance(base_model, str) else None
        if card.get("license"):
            texts = {key: str(card[key]) for key in ("license_name", "license_link") if card.get(key)}
            license = card["license"][0] if isinstance(card["license"], list) else card["license"]
            where = f"the card of {each}" if is_id else "the card beside it"
            known = base_model or Path(each).name
            return Origin(known, base_model is not None, str(license), **texts, said_by=where)
    if base_model in _KNOWN:
        return Origin(base_model, True, _KNOWN[base_model], said_by=f"what geo_embed knows of {base_model}")
    return Origin(base_model or Path(named[-1]).name, base_model is not None)


def warn_of_license(origin: Origin) -> None:
    """Say what whoever passes an export on has to know."""
    if origin.license == UNKNOWN:
        warn(
            f"the licence of the backbone, {origin.base_model}, is unknown: nothing says that it may be passed on, or used; find it out, "
            "and write it into README.md"
        )
    elif origin.forbids_commerce:
        warn(
            f"the backbone, {origin.base_model}, is licensed {origin.license_name or origin.license}: not for commercial use, "
            "and neither is this export, or what is made of its answers to train others"
        )


def _model_of(part: dict[str, Any]) -> dict[str, Any]:
    heads = part["best"]["members"][0] if "best" in part else part["heads"]
    model: dict[str, Any] = heads["model"]
    return model


def _hub_id(name: str) -> str | None:
    """The id that a name is, as far as this machine knows, or that a directory's path or name tells."""
    from huggingface_hub import try_to_load_from_cache

    snapshot = _SNAPSHOT.search(name)
    if snapshot:
        return f"{snapshot[1]}/{snapshot[2]}"
    # A relative path looks the same.
    is_id = _HUB_ID.fullmatch(name) and not Path(name).is_dir()
    if is_id and (name in _KNOWN or isinstance(try_to_load_from_cache(name, "config.json"), str)):
        return name
    return next((known for known in _KNOWN if known.split("/")[1].lower() == Path(name).name.lower()), None)


def _front_matter(name: str) -> tuple[dict[str, Any], bool]:
    """What the card of a model says of itself, and whether it is one of the hub's; empty where there is none, or it can't be read."""
    from huggingface_hub import ModelCard

    text, is_id = _card_text(name)
    try:
        card = {} if text is None else ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    # A card of somebody else's: YAML that isn't, metadata of other kinds.
    except Exception:
        card = {}
    return card, is_id


def _card_text(name: str) -> tuple[str | None, bool]:
    """A model's card, in its directory or of its id, and whether it is the latter's."""
    from huggingface_hub import hf_hub_download

    directory = Path(name)
    if directory.is_dir():
        path = directory / _CARD
        try:
            return (read_bytes(path, limit=_CARD_BYTES).decode() if path.is_file() else None), False
        except (GeoError, UnicodeDecodeError):
            return None, False
    for offline in (True, False) if _HUB_ID.fullmatch(name) else ():
        try:
            return Path(hf_hub_download(name, _CARD, local_files_only=offline)).read_text(
                encoding="utf-8"
            ), True
        # Whatever the hub client raises without a network, a file or permission.
        except Exception:
            continue
    return None, False
