"""What the JSON files of a run must hold, whoever wrote them. What else they hold is left as it is."""

from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from geo_embed.config import EnsembleMethod, EnsemblePoint

# Beyond any tower's.
_WIDEST = 1 << 20
# Of temperatures, kilometres, factors: beyond any, and no integer that overflows.
_LARGEST = 1e9
# As far as sums of single-precision shares stray.
SUM_TOLERANCE = 1e-3

Share = Annotated[float, Field(ge=0, le=1 + SUM_TOLERANCE)]
Latitude = Annotated[float, Field(ge=-90, le=90)]
Longitude = Annotated[float, Field(ge=-180, le=180)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(max_length=10_000)]


class _File(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False, frozen=True)


class _Class(_File):
    state_idx: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    state: Text
    samples: Count = 0


class _Prior(_File):
    probabilities: list[Share]
    latitude: Latitude
    longitude: Longitude


class Labels(_File):
    """labels.json: the classes in the order of every table's probabilities, and the answer without pictures."""

    classes: list[_Class] = Field(min_length=1, max_length=100_000)
    prior: _Prior

    @model_validator(mode="after")
    def _agree(self) -> "Labels":
        if len(self.classes) != len(self.prior.probabilities):
            raise ValueError(
                f"{len(self.classes)} classes, {len(self.prior.probabilities)} prior probabilities"
            )
        repeated = [a for a, b in pairwise(sorted(entry.state_idx for entry in self.classes)) if a == b]
        if repeated:
            raise ValueError(f"state_idx {repeated[0]} is repeated")
        if abs(sum(self.prior.probabilities) - 1) > SUM_TOLERANCE:
            raise ValueError(f"the prior's probabilities sum to {sum(self.prior.probabilities):.6g}")
        return self


class _Store(_File):
    dim: int = Field(ge=1, le=_WIDEST)
    fingerprint: Text
    backbone: Text = "unknown"
    weights_sha256: Text | None = None
    preprocessing: dict[str, Any] | None = None
    # A further one of the store's; None for its own.
    feature: Text | None = None
    # Of an import alone; runs of earlier versions lack both.
    content_sample: list[Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]] = Field([], max_length=1000)
    source_made_by: dict[str, Text] | None = None


class _Source(_Store):
    name: Text
    function: dict[str, Any] | None = None


class _Data(_File):
    sha256: Text


class Provenance(_File):
    """provenance.json: what a run was fitted on."""

    store: _Store
    stores: list[_Store] = Field([], max_length=10_000)
    # Of heads over several sources, all of them; `store` is the first.
    sources: list[_Source] = Field([], max_length=1000)
    data: _Data | None = None


# A tag is one word, so that a shell and a table need no quotes for it.
Tag = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\s,\x00-\x1f\x7f-\x9f]+$")]


class Tags(_File):
    """tags.json: what people say of a run."""

    tags: list[Tag] = Field([], max_length=1000)
    note: Text = ""


class _Scores(_File):
    score: float | None


class Metrics(_File):
    """metrics.json: the scores on the samples that were held out; and of a choice that they made, its own on these very samples."""

    val: _Scores
    chosen: _Scores | None = None


class _Members(_File):
    method: EnsembleMethod
    # Earlier versions knew the median alone, and said nothing of it.
    point: EnsemblePoint = "median"
    weights: list[Share] = Field(min_length=1, max_length=10_000)
    members: list[Annotated[str, Field(pattern=r"^[^./\x00][^/\x00]{0,254}$")]]

    @model_validator(mode="after")
    def _agree(self) -> "_Members":
        if len(set(self.members)) != len(self.weights) or len(self.members) != len(self.weights):
            raise ValueError(
                f"{len(self.members)} members with {len(self.weights)} weights, or one is repeated"
            )
        if abs(sum(self.weights) - 1) > SUM_TOLERANCE:
            raise ValueError(f"the members' weights sum to {sum(self.weights):.6g}")
        return self


# What follows is taken over as it stands, so that nothing may only look like a number.
class _Refiner(_File, extra="forbid", strict=True):
    cells: int = Field(ge=1, le=100_000)
    neighbours: int = Field(ge=1, le=100_000)
    temperature: float = Field(gt=0, le=_LARGEST)
    max_km: float = Field(ge=0, le=_LARGEST)
    samples: int = Field(ge=1, lt=2**31)


class _Heads(_File):
    model: dict[str, Any]
    cells: int = Field(ge=0, lt=2**31)
    refiner: _Refiner | None
    # Of heads that look at one of several sources.
    columns: tuple[int, int] | None = None


class _Member(_Heads):
    name: Text
    training: dict[str, Any]


class _Decision(_File, extra="forbid", strict=True):
    weights: list[Share] = Field(min_length=1)
    head_share: float = Field(ge=0, le=1)
    cell_temperature: float = Field(gt=0, le=_LARGEST)
    state_temperature: float = Field(gt=0, le=_LARGEST)


class _Mixture(_File):
    members: list[_Member] = Field(min_length=1, max_length=1000)
    decision: _Decision

    @model_validator(mode="after")
    def _agree(self) -> "_Mixture":
        if len(self.members) != len(self.decision.weights):
            raise ValueError(f"{len(self.members)} members with {len(self.decision.weights)} weights")
        if abs(sum(self.decision.weights) - 1) > SUM_TOLERANCE:
            raise ValueError(f"the members' weights sum to {sum(self.decision.weights):.6g}")
        return self


class _Part(_File):
    heads: _Heads | None = None
    best: _Mixture | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "_Part":
        if (self.heads is None) == (self.best is None):
            raise ValueError("a part is either `heads` or `best`")
        return self


class _Calibration(_File, strict=True):
    kind: Text
    scale: list[Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]]
    offset: list[Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]]


class Recipe(_File):
    """recipe.json: the members of an ensemble, or how heads are built."""

    ensemble: _Members | None = None
    format: int = 0
    parts: list[_Part] = Field([], max_length=1000)
    calibration: _Calibration | None = None

    @model_validator(mode="after")
    def _null_is_no_ensemble(self) -> "Recipe":
        if self.ensemble is None and "ensemble" in self.model_fields_set:
            raise ValueError("an ensemble without members")
        return self
