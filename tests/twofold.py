"""A few places, embedded by two backbones of different families, sizes and preprocessing, and runs on both: for exports."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small import Country, Small
from towers import siglip

from geo_embed.config import Config
from geo_embed.extraction.extract import extract
from geo_embed.fitting.fit import fit_heads
from geo_embed.runs.run import Run, load_run

# What their own cards say, in front of all else.
CARDS = {
    "clip": ("license: cc-by-nc-4.0", "base_model: maker/clip"),
    "siglip": ("license: mit", "base_model: maker/siglip"),
}


@dataclass(frozen=True)
class Twofold:
    """The places, and the backbones by name: `clip` is named first, and `siglip` has the first columns."""

    small: Small
    backbones: dict[str, str]

    def config(self, *names: str, **changes: Any) -> Config:
        """Settings for heads on some of the backbones, of the features that their stores have."""
        chosen = {"model__backbones": [self.backbones[name] for name in names]} if names else {}
        few = {"model__head": "separate", "training__val_split": 0.3, "model__head_features": "all"}
        return self.small.config(**chosen, **few | changes)

    def run(self, name: str) -> Run:
        return load_run(self.small.config().paths.runs_dir, name)

    def pictures(self, row: int) -> list[Path]:
        table = self.small.table()
        return [self.small.images() / table[f"image_{view}"][row] for view in self.config().model.view_names]


def make_twofold(country: Country, root: Path) -> Twofold:
    """Two features of the CLIP, one of the SigLIP; a run on both, `both`."""
    small = Small.cut(country, root / "small", train=24, test=1, chunk_rows=12)
    # Directories of one name, of which the first by the alphabet is the second that is named.
    backbones = {"clip": str(root / "z" / "tower"), "siglip": str(root / "a" / "tower")}
    shutil.copytree(country.backbone, backbones["clip"])
    (root / "a").mkdir()
    siglip(Path(backbones["siglip"]))
    for name, lines in CARDS.items():
        Path(backbones[name], "README.md").write_text("\n".join(("---", *lines, "---", "")))
    made = Twofold(small, backbones)
    features = {"clip": ("image_embeds", "token_mean"), "siglip": ("image_embeds",)}
    for name, path in backbones.items():
        extract(small.config(model__backbone_name=path, model__features=features[name]), "train")
    fit_heads(made.config("clip", "siglip"), name="both")
    return made
