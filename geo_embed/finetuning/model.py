"""Backbone, fusion and heads as one model, from images to predictions: what stage 3 trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.backbone import Backbone
from geo_embed.config import Finetune, Training
from geo_embed.devices import count_parameters
from geo_embed.heads.heads import CellHeads
from geo_embed.heads.layers import Drop, keep
from geo_embed.heads.losses import loss_parts, make_tables, total_loss
from geo_embed.heads.mixture import Mixture
from geo_embed.heads.predictor import Panel, together

Drops = Callable[[float], Drop]

# Parts of the names of embeddings, in towers of all families and in heads.
_NO_DECAY = ("embed", "cls_token", "position", "mask_token", "register_tokens", "reg_token", "direction")


def no_drop(rate: float) -> Drop:
    """The dropout of prediction: none, whatever the rate."""
    return keep


@dataclass(frozen=True)
class Summary:
    """How many parameters there are, and how many of them are trained."""

    backbone: int
    fusion: int
    heads: int
    trainable: int


class GeoModel(nn.Module):
    """Images to embeddings to predictions, with the heads, the losses and the decisions of stage 2.

    Args:
        backbone: its tower is trained in place.
        panel: the heads of a run. Those that can't be trained on answer until `leave_frozen`, and aren't part of the model.
        training: whose losses the plain heads have; members of `best` bring their own, but for `class_weights`, which hold
            for all where asked for here.
        counts: (C,) training samples of each class.
        spans: (2,) height and width of the training places' box, degrees.
    """

    def __init__(
        self, backbone: Backbone, panel: Panel, training: Training, counts: Tensor, spans: Tensor
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tower: nn.Module = backbone.module
        self.panel = panel.to(backbone.device).tunable()
        # In a tuple, so that it is no module of this one.
        self._frozen: tuple[Panel, ...] = (panel,)
        self._leaves = [
            (
                heads,
                weight,
                fitted.model_copy(update={"class_weights": fitted.class_weights or training.class_weights}),
            )
            for heads, weight, fitted in self.panel.leaves(training)
        ]
        self._tables = [
            make_tables(
                heads.centroids.double().cpu().numpy(),
                counts.numpy(),
                heads.centres if isinstance(heads, CellHeads) else None,
                fitted,
                backbone.device,
                spans=spans,
            )
            for heads, _, fitted in self._leaves
        ]

    def encode_views(self, pixels: Tensor, present: Tensor) -> Tensor:
        """Normalised pixels (B, V, 3, H, W) and (B, V) bool to embeddings (B, V, D) float32, 0 where a view is absent."""
        flat = pixels.flatten(0, 1)
        embedded = backbones.embed(self.backbone, flat if present.all() else flat[present.flatten()]).float()
        absent = embedded.new_zeros(*present.shape, embedded.shape[1])
        return absent.masked_scatter(present[..., None], embedded)

    def forward(self, pixels: Tensor, present: Tensor, drops: Drops = no_drop) -> dict[str, Any]:
        """Normalised pixels (B, V, 3, H, W) and (B, V) bool to `embeddings` (B, V, D), and `heads`: what each set of heads
        makes of them (`Heads.forward`).

        Args:
            drops: from a rate to the dropout of the heads that have it.
        """
        embeddings = self.encode_views(pixels, present)
        with torch.autocast(embeddings.device.type, enabled=False):
            return {
                "embeddings": embeddings,
                "heads": [
                    heads(embeddings, present, drops(heads.model.dropout)) for heads, _, _ in self._leaves
                ],
            }

    def loss(self, out: Mapping[str, Any], labels: Tensor, points: Tensor) -> Tensor:
        """The mean loss of a batch: the sum of `loss_parts`, which has the arguments."""
        return total_loss(self.loss_parts(out, labels, points))

    def loss_parts(self, out: Mapping[str, Any], labels: Tensor, points: Tensor) -> dict[str, Tensor]:
        """What the mean loss of a batch is the sum of, by the names of `losses.LOSS_PARTS`: over all sets of heads, each by its
        weight in the prediction.

        Args:
            out: of `forward`.
            labels: (B,) classes.
            points: (B, 3) float32 unit vectors of the true places.
        """
        parts: dict[str, Tensor] = {}
        for predicted, tables, (_, weight, training) in zip(
            out["heads"], self._tables, self._leaves, strict=True
        ):
            for name, part in loss_parts(predicted, labels, points, tables, training).items():
                parts[name] = parts[name] + weight * part if name in parts else weight * part
        return parts

    def predict(self, pixels: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels (B, V, 3, H, W) to P(state) (B, C) and latitude, longitude (B, 2) in degrees."""
        return self.answering.predict(self.encode_views(pixels, present), present)

    def predict_variants(self, variants: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, V, D) and `present` of a batch's variants (`augment.tta_views`) to one prediction, as in `predict`."""
        return together([self.answering.predict(embeddings, present) for embeddings, present in variants])

    @property
    def answering(self) -> Panel:
        """The heads that predict: the run's before any step, and from `leave_frozen` on those that are trained."""
        return self._frozen[0] if self._frozen else self.panel

    def left_out(self) -> list[str]:
        """Names of the members that answer before the first step only."""
        trained = {id(heads) for heads, _, _ in self._leaves}
        mixtures = [part for part in self.answering.parts if isinstance(part, Mixture)]
        return [
            member.name
            for mixture in mixtures
            for member, heads in zip(mixture.members, mixture.heads, strict=True)
            if id(heads) not in trained
        ]

    def leave_frozen(self) -> None:
        """Let only what is trained answer from now on, and no point be refined: galleries lie in the frozen backbone's space."""
        self._frozen = ()
        for heads, _, _ in self._leaves:
            heads.forget_gallery()

    def unfreeze(self, last_layers: int | None) -> None:
        """Let the backbone be trained: all of it, or its last layers; the heads always are."""
        backbones.unfreeze(self.tower, last_layers)
        self.panel.requires_grad_(True)

    def summary(self) -> Summary:
        """Counts of parameters."""
        tower, tower_trained = count_parameters(self.tower)
        panel, panel_trained = count_parameters(self.panel)
        fusion = sum(count_parameters(heads.fusion)[0] for heads, _, _ in self._leaves)
        return Summary(tower, fusion, panel - fusion, tower_trained + panel_trained)

    def parameter_groups(self, settings: Finetune) -> list[dict[str, Any]]:
        """Groups for AdamW, every parameter once: heads at `head_lr`, the backbone at `backbone_lr`, times `layer_decay`
        for each layer between it and the output. Norms, biases and embeddings don't decay.
        """
        # Layer k of n, from the images to the output, learns at backbone_lr · layer_decay^(n − 1 − k): what is general
        # and lies deep moves least. One group for each rate and kind of decay; `peak` is the rate that the schedule scales.
        names = {id(p): name for name, p in self.named_parameters()}
        layers = backbones.layer_groups(self.tower)
        top = len(layers) - 1
        rates = [settings.backbone_lr * settings.layer_decay ** (top - k) for k in range(len(layers))]
        heads = list(self.panel.parameters())
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for rate, parameters in [*zip(rates, layers, strict=True), (settings.head_lr, heads)]:
            for p in parameters:
                decays = p.ndim > 1 and not any(part in names[id(p)] for part in _NO_DECAY)
                groups.setdefault((rate, decays), []).append(p)
        return [
            {
                "params": parameters,
                "lr": rate,
                "peak": rate,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (rate, decays), parameters in groups.items()
        ]
