"""Whose backbone it is, and what its licence allows: what an export has to carry on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geo_embed.console import warn
from geo_embed.errors import GeoError
from geo_embed.files import read_bytes
from geo_embed.runs.backbone import Inputs
from geo_embed.runs.recipe import answering_runs, read_recipe
from geo_embed.runs.run import Run

_CARD = "README.md"
_CARD_BYTES = 4 << 20
UNKNOWN = "unknown"
# Of backbones that people keep as directories without their card.
_KNOWN = {"geolocal/StreetCLIP": "cc-by-nc-4.0"}
_HUB_ID = re.compile(r"[A-Za-z0-9_.-]{1,96}/[A-Za-z0-9_.-]{1,96}")
# What the hub takes for a licence, and for the name of one that it doesn't know.
_LICENSE = re.compile(r"[a-z0-9.-]{1,100}")
# The text of a licence beside a model: whoever passes the model on has to pass it on as well.
_TEXT = re.compile(r"(LICEN[CS]E|NOTICE|COPYING)([._-][\w.-]{0,80})?", re.IGNORECASE)
_MOST_TEXTS, _TEXT_BYTES = 8, 1 << 20
_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


@dataclass(frozen=True)
class Origin:
    """Where a backbone comes from.

    Attributes:
        base_model: its id on the hub; or the name of its directory, where that is all that is known.
        on_hub: whether `base_model` is an id.
        license: as its card has it, by the hub's own names, several with commas between them; `unknown` where nothing says.
        license_name, license_link: of a license `other`, as its card has them.
        said_by: where the licence stands.
        texts: files with the licence's own words, which go along with the backbone.
    """

    base_model: str
    on_hub: bool
    license: str = UNKNOWN
    license_name: str | None = None
    license_link: str | None = None
    said_by: str = ""
    texts: tuple[Path, ...] = ()

    @property
    def forbids_commerce(self) -> bool:
        """Whether the licence's name says so."""
        names = f"{self.license} {self.license_name}".lower()
        return "-nc" in names or "noncommercial" in re.sub("[^a-z]", "", names)


def find_origins(run: Run, inputs: Inputs, names: Sequence[str | None]) -> list[Origin]:
    """The backbones that a run's were before they were fine-tuned, if they were, and their licences, in the order of the embeddings' columns.

    Looked for in this order: the card in the directory that a backbone lies in, or that it was fine-tuned from; the card of its id in
    the local Hugging Face cache, then on the hub; what is known here of StreetCLIP.

    Args:
        run: any run.
        inputs: what it answers from.
        names: where each lies, if it was given.
    """
    origins = []
    for number, name in enumerate(names):
        first = inputs.by_backbone[number][0]
        if first.get("arrays"):
            # Whoever gave them called them so: it is no model's name.
            origins.append(Origin(first["name"], False))
            continue
        named: list[str | None] = [name]
        for part in answering_runs(run):
            numbers = [k for k, _ in inputs.places[part.path]]
            if set(numbers) == {number}:
                # Of a run that was fine-tuned, its heads still name what they were fitted on.
                sets = read_recipe(part)[1]["parts"]
                named += [_model_of(entry).get("backbone_name") for entry in sets]
                named += [part.config.model.backbone_name, part.provenance["store"]["backbone"]]
            else:
                sources_of_part = [
                    source for k, source in zip(numbers, part.sources, strict=True) if k == number
                ]
                named += [text for source in sources_of_part for text in (source["backbone"], source["name"])]
        origins.append(_origin_of(list(dict.fromkeys(str(text) for text in named if text))))
    return origins


def _origin_of(named: Sequence[str]) -> Origin:
    """A backbone's, by all that it is called."""
    base_model = next(filter(None, map(_hub_id, named)), None)
    texts = tuple(text for alias in named for text in _license_texts(alias))[:_MOST_TEXTS]
    for alias in named:
        card, is_id = _front_matter(alias)
        if base_model is None:
            base_model = alias if is_id else _id_of(card.get("base_model"))
        licenses = [str(name).strip() for name in _several(card.get("license")) if str(name).strip()]
        if licenses:
            where = f"the card of {alias}" if is_id else "the card beside it"
            license, license_name, link = _by_the_hubs_names(licenses, card, base_model)
            known = base_model or Path(alias).name
            return Origin(known, base_model is not None, license, license_name, link, where, texts)
    known = base_model or Path(named[-1]).name
    if known in _KNOWN:
        return Origin(known, True, _KNOWN[known], said_by=f"what geo_embed knows of {known}", texts=texts)
    return Origin(known, base_model is not None, texts=texts)


def _by_the_hubs_names(
    licenses: list[str], card: dict[str, Any], base_model: str | None
) -> tuple[str, str | None, str | None]:
    """`license`, `license_name` and `license_link` of an origin, as the hub takes them: it refuses a whole card for what it doesn't."""
    name, link = (
        " ".join(str(card.get(key) or "").split()) or None for key in ("license_name", "license_link")
    )
    if not all(map(_LICENSE.fullmatch, licenses)):
        licenses, name = ["other"], name or ", ".join(licenses)
    if name is not None:
        name = re.sub("[^a-z0-9.-]+", "-", name.lower()).strip("-")[:100] or None
    # A file beside the backbone's card lies beside it still.
    if link is not None and not re.fullmatch(r"https?://[^\s<>()\[\]]{1,500}", link):
        is_file = base_model is not None and re.fullmatch(r"[\w.-]{1,100}", link)
        link = f"https://huggingface.co/{base_model}/blob/main/{link}" if is_file else None
    return ", ".join(licenses), name, link


def _several(entry: object) -> list[Any]:
    return entry if isinstance(entry, list) else [entry or ""]


def _id_of(entry: object) -> str | None:
    """The first of what a card names as its base models, where it is an id."""
    first = str(_several(entry)[0]) if _several(entry) else ""
    return first if _HUB_ID.fullmatch(first) else None


def _license_texts(name: str) -> list[Path]:
    """The files beside a backbone in a directory that hold the licence's own words."""
    try:
        files = sorted(Path(name).iterdir()) if Path(name).is_dir() else []
        return [
            file
            for file in files
            if _TEXT.fullmatch(file.name) and file.is_file() and file.stat().st_size <= _TEXT_BYTES
        ]
    except OSError:
        return []


def licenses_of(origins: Sequence[Origin]) -> list[str]:
    """Of all of them, each once."""
    return list(dict.fromkeys(text for origin in origins for text in origin.license.split(", ")))


def strictest(origins: Sequence[Origin]) -> Origin:
    """The one whose licence allows least: an unknown one may allow nothing."""
    return min(origins, key=lambda origin: (origin.license != UNKNOWN, not origin.forbids_commerce))


def warn_of_licenses(origins: Sequence[Origin]) -> None:
    """Say what whoever passes an export on has to know, of each backbone once."""
    for origin in dict.fromkeys(origins):
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
