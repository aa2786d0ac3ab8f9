"""The answers of the JSON API, as its documentation describes them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Error(_Answer):
    """What went wrong, and what to do about it."""

    error: str
    hint: str


class Class(_Answer):
    """A class of the run: a state, a country, whatever it was fitted on. `state` elsewhere is its `index`."""

    index: int
    state_idx: int = Field(description="the dataset's own number of it")
    name: str
    latitude: float
    longitude: float
    samples: int = Field(description="in training")


class About(_Answer):
    """A run at a glance."""

    run: str
    split: str
    splits: list[str]
    samples: int
    classes: list[Class]
    view_names: list[str]
    metrics: dict[str, Any] | None = Field(
        description="as `geo evaluate` gives them; null of a split without truth"
    )
    interval: list[float] | None = Field(description="95 % interval of the score")
    competition: dict[str, Any] = Field(description="the numbers in the formulas of score and geoscore")
    has_truth: bool
    has_pictures: bool
    why_no_pictures: str | None
    can_predict: bool
    why_not: str | None
    compare: str | None = Field(
        description="the run that stands beside; null where it has no answers for the split"
    )
    why_no_game: str | None
    most_bytes: int = Field(description="of a picture that is sent")
    embedding_view: str = Field(description="what x and y are a projection of")
    provenance: list[str]


class Place(_Answer):
    """A true place."""

    state: int | None
    name: str | None
    latitude: float
    longitude: float


class State(_Answer):
    """One of the likeliest states."""

    state: int
    name: str
    probability: float


class Prediction(_Answer):
    """A run's answer."""

    latitude: float
    longitude: float
    km: float | None
    score: float | None
    top: list[State]


class Distribution(_Answer):
    """Where a sample may be: the likeliest cells, or classes where the heads have no cells."""

    kind: str
    state: list[int] | None = Field(description="of each its class; null where they are cells")
    latitude: list[float]
    longitude: list[float]
    probability: list[float]


class Neighbour(_Answer):
    """A training sample that is alike in the learnt space."""

    sample_id: str
    split: str
    name: str | None
    latitude: float
    longitude: float
    km: float | None
    similarity: float = Field(description="cosine")
    picture: str | None


class View(_Answer):
    """A view of a sample."""

    name: str
    picture: str | None
    weight: float | None = Field(None, description="its share in the answer; null where views aren't weighed")


class Answered(_Answer):
    """What a run says of a place."""

    truth: Place | None
    prediction: Prediction
    distribution: Distribution
    neighbours: list[Neighbour]


class Sample(Answered):
    """A sample of a split."""

    sample_id: str
    split: str
    views: list[View]


class Outline(_Answer):
    """A class on the map; rings are closed, of [longitude, latitude], and islands are among them."""

    name: str
    rings: list[list[list[float]]]


class Outlines(_Answer):
    """The map."""

    projection: str = Field(description="albers-usa, conic-equal-area or equal-earth")
    parallels: list[float]
    longitude: float
    latitude: float
    credit: str
    features: list[Outline]
    context: list[list[list[float]]]


class GameView(_Answer):
    """A view to guess by."""

    name: str
    picture: str | None


class Round(_Answer):
    """A sample to guess."""

    sample_id: str
    split: str
    views: list[GameView]


class Game(_Answer):
    """Samples to guess; the same seed deals the same."""

    seed: int
    rounds: list[Round]


class Guess(BaseModel):
    """A person's guess."""

    model_config = ConfigDict(extra="forbid")

    split: str = "val"
    sample_id: str = Field(max_length=4096)
    latitude: float = Field(ge=-90, le=90, allow_inf_nan=False)
    longitude: float = Field(ge=-180, le=180, allow_inf_nan=False)
    state: int | None = Field(None, description="a class; left out, the one whose outline holds the point")


class JudgedModel(Prediction):
    """The run's answer, scored."""

    geoscore: float


class JudgedPerson(_Answer):
    """A person's guess, scored."""

    km: float | None
    score: float
    geoscore: float
    state: int | None
    name: str | None


class Judged(_Answer):
    """A guess beside the run's answer."""

    truth: Place
    model: JudgedModel
    person: JudgedPerson
