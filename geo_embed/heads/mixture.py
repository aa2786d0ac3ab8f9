"""Mixture of heads that answer over the cells that they share: what the race of `--preset best` chose."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from geo_embed.blocks import Block
from geo_embed.config import Model, Training
from geo_embed.heads.decision import Decision, decide, decide_cells
from geo_embed.heads.heads import CellHeads, build_heads
from geo_embed.sphere import unit_to_degrees


@dataclass(frozen=True)
class Member:
    """Member of a mixture, or candidate for it: its name for people, its settings, and while it is fitted the only one of several
    sources that it looks at.
    """

    name: str
    model: Model
    training: Training
    block: Block | None = None

    def variant(self, suffix: str, model: dict[str, Any] | None = None, **training: Any) -> "Member":
        """The same with changes of its settings, under a longer name."""
        return replace(
            self,
            name=self.name + suffix,
            model=self.model.model_copy(update=model or {}),
            training=self.training.model_copy(update=training),
        )


class Mixture(nn.Module):
    """Members with their decision over the cells that they share."""

    def __init__(self, members: Sequence[Member], parts: Sequence[CellHeads], decision: Decision) -> None:
        super().__init__()
        self.members, self.decision = list(members), decision
        self.parts = nn.ModuleList(parts)

    def tunable(self) -> "Mixture":
        """A mixture of those members, themselves and no copies, that fine-tuning can go on from; itself if all are, or none."""
        kept = [k for k, heads in enumerate(self.heads) if heads.tunable]
        weights = [self.decision.weights[k] for k in kept]
        if len(kept) == len(self.members) or not sum(weights):
            return self
        shares = tuple(weight / sum(weights) for weight in weights)
        return Mixture(
            [self.members[k] for k in kept],
            [self.heads[k] for k in kept],
            replace(self.decision, weights=shares),
        )

    def predict(self, views: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """(n, V, D) raw embeddings and (n, V) bool to P(state) (n, C) and latitude, longitude (n, 2) in degrees."""
        first = self.heads[0]
        if len(self.parts) == 1:
            return first.conclude(first(views, present), self.decision)
        # Members of a mixture have learnt different spaces: none of them looks among the training samples.
        answers = [part.answer(views, present) for part in self.heads]
        states, points = decide(answers, self.decision, first.centres, first.to_state)
        return states, unit_to_degrees(points)

    def spread(self, views: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """As `CellHeads.spread`, of all members together."""
        first = self.heads[0]
        answers = [part.answer(views, present) for part in self.heads]
        return first.centres, decide_cells(answers, self.decision, first.to_state)[1]

    @property
    def heads(self) -> list[CellHeads]:
        """The members' heads."""
        return [part for part in self.parts if isinstance(part, CellHeads)]

    def description(self) -> dict[str, Any]:
        """What the state dict doesn't say, as plain values."""
        return {
            "members": [
                {
                    "name": member.name,
                    "training": member.training.model_dump(mode="json"),
                    **heads.description(),
                }
                for member, heads in zip(self.members, self.heads, strict=True)
            ],
            "decision": {
                "weights": list(self.decision.weights),
                "head_share": self.decision.head_share,
                "cell_temperature": self.decision.cell_temperature,
                "state_temperature": self.decision.state_temperature,
            },
        }


def build_mixture(description: dict[str, Any], dim: int, views: int, classes: int) -> Mixture:
    """A `Mixture` whose weights are still to be loaded. Raises KeyError, TypeError or ValueError for a damaged description."""
    entries = description["members"]
    parts = [build_heads(entry, dim, views, classes) for entry in entries]
    cells = [part for part in parts if isinstance(part, CellHeads)]
    if len(cells) < len(parts):
        raise ValueError("a member without cells")
    members = [
        Member(entry["name"], heads.model, Training.model_validate(entry["training"]))
        for entry, heads in zip(entries, parts, strict=True)
    ]
    decision = dict(description["decision"])
    return Mixture(members, cells, Decision(tuple(decision.pop("weights")), **decision))
