"""Sure variants of pictures, over which predictions are averaged at test time: which there are, and how they are named.

What a variant does to pixels is in augment.py. Nothing here imports torch: whoever looks for a store asks which variant it holds.
"""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from geo_embed.config import Augment
from geo_embed.errors import GeoError

_WORDS = r"north|south|east|west|left|right|front|back|rear|ahead|behind|up|down"
_NAMED = re.compile(rf"(?:{_WORDS})(?:[-_ ]?(?:{_WORDS}))*|[ns]|[ns]?[ew]")
_MIRRORED = {"east": "west", "west": "east", "left": "right", "right": "left"}


class Variant(BaseModel):
    """One change that is made to every picture, the same for each.

    Attributes:
        crop: share of the area that is shown, of the picture's middle.
        mirror: left and right are swapped. A mirrored scene has its views in another order, too: `mirror_order`.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    crop: float = Field(1.0, gt=0, le=1)
    mirror: bool = False

    def recorded(self) -> dict[str, Any]:
        """What it changes, as a store records it; nothing for pictures as they are.

        >>> Variant(crop=0.5).recorded(), Variant().recorded()
        ({'crop': 0.5}, {})
        """
        return self.model_dump(exclude_defaults=True)

    def __str__(self) -> str:
        changes = [f"the middle {100 * self.crop:.6g} %"] if self.crop < 1 else []
        changes += ["mirrored"] if self.mirror else []
        return ", ".join(changes) or "as they are"


AS_THEY_ARE = Variant()


def variants_of(settings: Augment, view_names: Sequence[str]) -> list[Variant]:
    """The variants that a training's augmentation allows for: pictures as they are; their middle, as large a part as the average
    crop of the training (where that crops); and their mirror image (where that flips).

    Raises:
        GeoError: a flip is asked for, and these views can't be mirrored.
    """
    variants = [AS_THEY_ARE]
    if settings.crop < 1:
        variants.append(Variant(crop=(1 + settings.crop) / 2))
    if flipped_order(settings, view_names) is not None:
        variants.append(Variant(mirror=True))
    return variants


def flipped_order(settings: Augment, view_names: Sequence[str]) -> tuple[int, ...] | None:
    """The mirrored order where a flip is asked for, else None. Raises GeoError as `variants_of`."""
    return scene_order(Variant(mirror=True), view_names) if settings.flip else None


def scene_order(variant: Variant, view_names: Sequence[str]) -> tuple[int, ...]:
    """Which view takes each view's place in a variant of a scene. Raises GeoError where these views can't be mirrored."""
    if not variant.mirror:
        return tuple(range(len(view_names)))
    order = mirror_order(view_names)
    if order is None:
        raise GeoError(
            f"views named {', '.join(view_names)} can't be mirrored: which of them swap is not known",
            where="flip",
            hint="set it to 0; views named by directions (north, east, south, west; left, right) can be mirrored",
        )
    return order


def mirror_order(view_names: Sequence[str]) -> tuple[int, ...] | None:
    """Which view takes each view's place in a mirrored scene: east and west swap, as left and right; north stays.

    Understands `north`, `SE`, `front_left` and their like. None where a name is no direction, or its mirror image isn't
    among the views.
    """
    names = [name.lower() for name in view_names]
    if not all(_NAMED.fullmatch(name) for name in names):
        return None
    mirrored = [
        name.translate(str.maketrans("ew", "we"))
        if len(name) < 3
        else re.sub("east|west|left|right", lambda match: _MIRRORED[match[0]], name)
        for name in names
    ]
    return tuple(names.index(name) for name in mirrored) if set(mirrored) <= set(names) else None
