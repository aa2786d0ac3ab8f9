"""What a run needs of a split and the cache lacks, embedded: by the very backbone and settings that the run was fitted on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from geo_embed.backbones.weights import find_backbone, fingerprint_of
from geo_embed.cache.find import check_fits, is_meant, same_preprocessing, store_attributes
from geo_embed.cache.store import PENDING, content_digest, lacking, list_stores, read_status, stored_dtype
from geo_embed.config import Config, Dtype, Model
from geo_embed.console import counted, say, warn
from geo_embed.data.samples import Samples, load_samples
from geo_embed.data.variants import AS_THEY_ARE, Variant, variants_of
from geo_embed.devices import dtype_name, pick_device, pick_dtype
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import Extraction, extract
from geo_embed.runs.recipe import answering_runs
from geo_embed.runs.run import Run, backbone_dir, on_this_machine
from geo_embed.runs.store import find_source_of

if TYPE_CHECKING:
    import torch


def extract_for_run(
    config: Config, run: Run, split: str, *, backbone: str | Sequence[str] | None = None
) -> list[Extraction]:
    """Embed what a run, or a member of an ensemble, needs of a split and the cache lacks; nothing where all is there.

    Nothing is done either where the folder of pictures isn't on this machine, or for a run that was fitted on an import: then
    whoever asks for the store says what is missing.

    Args:
        config: paths, device, how pictures are read, and `inference.tta`, whether the variants of the run's own augmentation are
            needed, too.
        run: that is to answer.
        split: `train` or `test`.
        backbone: where the run's lies now, or several do; default where it lay in training, or in the run itself.

    Raises:
        GeoError: the backbone isn't on this machine, or isn't the run's any more; a `backbone` is given that isn't the run's, or for
            a run that was fitted on an import; or as `extract`.
    """
    named = [backbone] if isinstance(backbone, str) else list(backbone or ())
    done = []
    for member in answering_runs(run):
        member = on_this_machine(member, config.paths, config.model.device)
        model, augment = member.config.model, run.config.finetune.augment
        variants = variants_of(augment, model.view_names) if config.inference.tta else [AS_THEY_ARE]
        samples = load_samples(member.config, split)
        for source in _with_places(config, member, split, named):
            done += _extract_source(config, run, member, source, samples, variants)
    return done


@dataclass(frozen=True)
class _Embedded:
    """A backbone that a run was fitted on.

    Attributes:
        fitted_on: of `Run.sources`.
        features: further ones of it that the run takes.
        places: where it may lie.
        settings: the settings by which it embeds, where it was named.
    """

    fitted_on: dict[str, Any]
    features: tuple[str, ...]
    places: list[str]
    settings: tuple[Config, Dtype] | None = None


def _with_places(config: Config, member: Run, split: str, named: list[str]) -> list[_Embedded]:
    """The backbones that a run was fitted on, but imports. Raises GeoError where a named one is none of them."""
    features: dict[str, list[str]] = {}
    for fitted_on in member.sources:
        further = [fitted_on["feature"]] if fitted_on.get("feature") is not None else []
        features.setdefault(fitted_on["fingerprint"], []).extend(further)
    stores = {fitted_on["fingerprint"]: fitted_on for fitted_on in member.sources}
    sources = [
        _Embedded(fitted_on, tuple(features[fingerprint]), _places(member, fitted_on))
        for fingerprint, fitted_on in stores.items()
        if fitted_on["weights_sha256"] is not None
    ]
    # One that is named is the run's, be it needed or not.
    for name in named:
        differs: GeoError | None = None
        for k, source in enumerate(sources):
            try:
                resolved = _settings_of(config, member, source.fitted_on, [name])
            except GeoError as error:
                differs = differs or error
                continue
            sources[k] = replace(source, settings=resolved)
            break
        else:
            raise differs or GeoError(
                f"{member.name} was fitted on imported embeddings: whether {name} made them isn't known here",
                where="--backbone",
                hint=f"do without --backbone, and import the {split} split's embeddings: geo cache import",
            )
    return sources


def _extract_source(
    config: Config,
    run: Run,
    member: Run,
    source: _Embedded,
    samples: Samples,
    variants: list[Variant],
) -> list[Extraction]:
    """What one backbone has to embed of a split for a run."""
    done: list[Extraction] = []
    split = samples.split
    # Twice: once a variant is there, it may turn out that pictures changed since the others were embedded.
    for _ in range(2):
        missing = _lacking(member, source, samples, variants)
        if not missing:
            break
        if not samples.image_root.is_dir() and not samples.pictures.are_there():
            warn(f"the {split} pictures can't be embedded here: there is no folder {samples.image_root}")
            break
        settings, dtype = source.settings or _settings_of(config, member, source.fitted_on, source.places)
        model = settings.model.model_copy(update={"features": (settings.model.feature, *source.features)})
        settings = settings.model_copy(update={"model": model})
        for variant in missing:
            kind = "" if variant == AS_THEY_ARE else f", {variant},"
            say(
                f"{run.name} needs the {split} pictures{kind} embedded by {settings.model.backbone_name}, and the cache "
                "lacks some: they are embedded first (--no-extract refuses instead)"
            )
            extraction = extract(settings, split, variant=variant, dtype=dtype)
            say(
                f"{counted(extraction.computed, 'picture computed', 'pictures computed')}, {extraction.reused:,} reused, "
                f"{len(extraction.skipped):,} skipped in {extraction.seconds:.1f} s: {extraction.store}"
            )
            done.append(extraction)
    return done


def _lacking(member: Run, source: _Embedded, samples: Samples, variants: list[Variant]) -> list[Variant]:
    """The variants without a whole store of these samples, with the features that are needed; all of them where their stores are of different pictures."""
    digests: dict[Variant, str] = {}
    for variant in variants:
        try:
            store = find_source_of(member, source.fitted_on, samples.split, variant).store
            check_fits(store, samples, any_order=True)
            has_all = all(
                feature in store.features and not lacking(store, feature) for feature in source.features
            )
            if has_all and (read_status(store) != PENDING).all():
                digests[variant] = content_digest(store)
        # What is wrong with it, the extraction says.
        except GeoError:
            continue
    if len(digests) == len(variants):
        return variants if len(set(digests.values())) > 1 else []
    return [variant for variant in variants if variant not in digests]


def _settings_of(
    config: Config, member: Run, fitted_on: dict[str, Any], places: list[str]
) -> tuple[Config, Dtype]:
    """Settings, and the backbone's precision, by which `extract` makes the store that a run was fitted on, with the backbone at one of the places.

    A run names its store by a fingerprint over all that made it, the precision on the machine of its training among them: of the
    few that there are, the one that gives this fingerprint is taken.

    Raises:
        GeoError: none does: another backbone lies there now.
    """
    device = pick_device(config.model.device)
    fingerprint = fitted_on["fingerprint"]
    train_stores = list_stores(member.config.paths.cache_dir, "train")
    differs: GeoError | None = None
    for name in places:
        model = member.config.model.with_backbone(name).model_copy(update={"fingerprint": None})
        switches = {"deterministic": config.model.deterministic, "tf32": config.model.tf32}
        attrs = store_attributes(model, find_backbone(name), pick_dtype(model.dtype, device))
        for dtype, stored in _precisions(model, device):
            if is_meant(_with_precision(attrs, dtype, stored), train_stores, fingerprint):
                # `auto` stores half precision.
                model = model.model_copy(
                    update={"dtype": "float32" if stored == "float32" else "auto", **switches}
                )
                return config.model_copy(update={"model": model, "paths": member.config.paths}), dtype
        differs = differs or _differs(member, fitted_on, name, attrs)
    assert differs is not None
    raise differs


def _places(member: Run, fitted_on: dict[str, Any]) -> list[str]:
    """Where a run's backbone may lie: where it lay in training, and in the run itself, wherever that was moved."""
    name, bundled = fitted_on["name"], backbone_dir(member.path)
    if not bundled.is_dir():
        return [name]
    return [name, str(bundled)] if Path(name).is_dir() else [str(bundled)]


def _precisions(model: Model, device: "torch.device") -> list[tuple[Dtype, str]]:
    """Precisions of a backbone and of its store, the likeliest first."""
    precisions: list[tuple[Dtype, str]] = [(name, "float16") for name in get_args(Dtype) if name != "auto"]
    precisions.append(("float32", "float32"))
    usual = dtype_name(pick_dtype(model.dtype, device)), stored_dtype(model.dtype)
    return sorted(precisions, key=lambda precision: precision != usual)


def _with_precision(attrs: dict[str, Any], dtype: str, stored: str) -> dict[str, Any]:
    made_by = {key: value for key, value in attrs.items() if key not in ("backbone", "fingerprint")}
    made_by |= {"dtype": dtype, "stored": stored}
    return {"backbone": attrs["backbone"], "fingerprint": fingerprint_of(made_by)} | made_by


def _differs(member: Run, fitted_on: dict[str, Any], name: str, attrs: dict[str, Any]) -> GeoError:
    """What there is to say where a backbone doesn't make the embeddings that a run was fitted on."""
    function = fitted_on["function"]
    what = "settings"
    if attrs["weights_sha256"] != fitted_on["weights_sha256"]:
        what = "weights"
    elif function not in (None, attrs["function"]):
        what = "settings in its config.json"
    elif not same_preprocessing(attrs["preprocessing"], fitted_on["preprocessing"]):
        what = "preprocessing"
    return GeoError(
        f"backbone {name} has other {what} than the one that {member.name} was fitted on, {fitted_on['backbone']}",
        where=member.path,
        hint="where the run's own lies: geo extract --split test --backbone DIR",
    )
