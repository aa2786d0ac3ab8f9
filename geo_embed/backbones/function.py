"""What an image tower computes, as its config.json has it: part of a store's fingerprint, and all that a tower is built from.

The weights are the numbers of a function, and this is its form: heads, activation, epsilons, sizes. It is known without the
weights and without building anything, and is the same for a whole CLIP and its tower saved alone. A tower is built from
these settings and from nothing else in the file, so that what isn't named here can't change an embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geo_embed.backbones.families import CLIP, GEOCLIP, TIMM, Family, family_of, quiet_transformers
from geo_embed.errors import GeoError
from geo_embed.files import read_json

# With any of these, transformers builds or loads another model than the settings and the weights say.
_NOT_FOLLOWED = (
    *("quantization_config", "per_layer_config", "fusion_config", "transformers_weights", "pruned_heads"),
    "compression_config",
)
# Of the classes' own: how a new model is initialised, and what classes other than the tower's make of it.
_WITHOUT_EFFECT = {
    *("initializer_range", "initializer_factor", "layerscale_value", "logit_scale_init_value"),
    *("apply_layernorm", "reshape_hidden_states", "return_class_token"),
    *("out_features", "out_indices", "stage_names", "do_pooling"),
}
# Of timm.create_model's: other weights, or another kind of answer, than a tower's.
_TIMM_LOADS = {
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path"),
    *("cache_dir", "features_only", "out_indices", "scriptable", "exportable", "no_jit", "num_classes"),
}
# timm's models are built to learn their width, and take a moment for each layer.
_TIMM_REPEATS, _TIMM_LAYERS, _TIMM_LARGEST = ("depth", "layers", "blocks"), 1000, 1_000_000


@dataclass(frozen=True)
class Function:
    """What a tower computes.

    Attributes:
        family: of its model.
        settings: what of config.json makes it compute what it computes, with transformers' defaults filled in.
        kept: what the tower keeps beside them, for training and for being saved.
    """

    family: Family
    settings: dict[str, Any]
    kept: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the fingerprint and the store."""
        name = "GeoCLIP" if self.family is GEOCLIP else self.family.tower
        return {"tower": name} | self.settings


def read_function(directory: Path) -> Function:
    """What the tower of a model directory computes. Nothing is built, and no weights are read.

    Raises:
        GeoError: no known family, or a setting that no tower can have or that isn't followed, by its name.
    """
    path, family = directory / "config.json", family_of(directory)
    content = _tower_content(path, read_json(path), family)
    defaults = _defaults(family)

    # What the family names, each checked; where the file is silent, what transformers takes.
    settings = {}
    for key, kind in family.settings.items():
        if key not in content and key not in defaults:
            raise GeoError(f"{key} is missing", where=path)
        settings[key] = _plain(_checked(path, key, kind, content[key]) if key in content else defaults[key])
    kept = {
        key: _checked(path, key, kind, content[key]) for key, kind in family.kept.items() if key in content
    }

    # A setting that later versions of transformers know counts where it isn't as they have it by default.
    known = {*family.settings, *family.kept, *_WITHOUT_EFFECT}
    settings |= {
        key: content[key]
        for key in sorted(defaults.keys() & content.keys() - known)
        if content[key] != defaults[key]
    }
    function = Function(family, settings, kept)
    _check_together(path, function, content)
    return function


def make_config(function: Function, directory: Path) -> Any:
    """The settings as transformers' own object of the family's class. Raises GeoError where it refuses them."""
    import transformers

    try:
        with quiet_transformers():
            return getattr(transformers, function.family.config)(**function.kept, **function.settings)
    # Each class checks its values in its own way.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise GeoError(
            f"transformers refuses the settings of this {function.family.tower}: {reason:.300}",
            where=directory / "config.json",
        ) from error


def _tower_content(path: Path, content: dict[str, Any], family: Family) -> dict[str, Any]:
    """The group of config.json that describes the image tower. A whole CLIP or SigLIP keeps it beside the text tower's."""
    group = content
    if family.config.endswith("VisionConfig") and "vision_config" in content:
        # None stands for a class's defaults, as in transformers.
        group = {} if content["vision_config"] is None else content["vision_config"]
        if not isinstance(group, dict):
            raise GeoError(
                f"vision_config is a {type(group).__name__}, where an object is wanted", where=path
            )
        _refuse_contradiction(path, content.get("vision_config_dict"), group)
        # A whole CLIP says its projection's width beside its towers.
        if family.config == CLIP.config and "projection_dim" in content:
            group = group | {"projection_dim": content["projection_dim"]}
    for key in _NOT_FOLLOWED:
        if content.get(key) or group.get(key):
            raise GeoError(
                f"{key} isn't followed",
                where=path,
                hint="load the model as it is meant, and save its plain weights with model.save_pretrained(DIR)",
            )
    return group


def _refuse_contradiction(path: Path, earlier: Any, group: dict[str, Any]) -> None:
    """CLIPs saved by early versions hold the group twice; transformers' classes don't agree which one counts."""
    if not isinstance(earlier, dict):
        return
    for key in sorted(earlier.keys() & group.keys() & {*CLIP.settings}):
        if earlier[key] != group[key]:
            raise GeoError(
                f"{key} is {group[key]!r:.40} in vision_config, {earlier[key]!r:.40} in vision_config_dict",
                where=path,
                hint="delete the one that is wrong",
            )


def _defaults(family: Family) -> dict[str, Any]:
    """What transformers takes for each setting that a file leaves out."""
    # timm's are its architectures' own; a SigLIP has its head where the class of an early version doesn't know of the setting.
    if family is TIMM:
        return {"model_args": None}
    defaults = {"vision_use_head": True} if "vision_use_head" in family.settings else {}
    import transformers

    with quiet_transformers():
        inherited = transformers.PreTrainedConfig().to_dict()
        complete = getattr(transformers, family.config)().to_dict()
    return defaults | {
        key: value for key, value in complete.items() if key not in inherited and key != "model_type"
    }


def _checked(path: Path, key: str, kind: Any, value: Any) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        what = error.errors(include_url=False)[0]["msg"]
        raise GeoError(f"{key}: {what}, got {value!r:.60}", where=path) from error


def _plain(value: Any) -> Any:
    """One form for what means the same: a square by its side."""
    pair = list(value) if isinstance(value, list | tuple) else None
    if pair is not None and len(pair) == 2 and pair[0] == pair[1]:
        return pair[0]
    return value if pair is None else pair


def _check_together(path: Path, function: Function, content: Mapping[str, Any]) -> None:
    settings = function.settings
    if function.family is TIMM:
        arguments = settings["model_args"] = dict(sorted((settings["model_args"] or {}).items()))
        for key in sorted(arguments.keys() & _TIMM_LOADS):
            raise GeoError(f"model_args.{key} isn't followed", where=path, hint="leave it out")
        for key, value in arguments.items():
            most = _TIMM_LAYERS if any(word in key for word in _TIMM_REPEATS) else _TIMM_LARGEST
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int | float) and not abs(number) <= most:
                    raise GeoError(f"model_args.{key}: {number!r:.40} is beyond any model", where=path)
        return
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    if width % heads:
        raise GeoError(f"hidden_size {width} is no multiple of num_attention_heads {heads}", where=path)
    # Read by DINOv2's attention, though its settings don't name it.
    if content.get("head_dim") not in (None, width // heads):
        raise GeoError(
            f"head_dim {content['head_dim']!r:.40} isn't followed: hidden_size / num_attention_heads is {width // heads}",
            where=path,
        )
