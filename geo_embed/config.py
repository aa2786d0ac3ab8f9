"""Every setting of the system: typed, with its unit and default, in six groups under one `Config`."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from geo_embed.buckets import Address
from geo_embed.console import PROGRESS_SECONDS
from geo_embed.locations import local_path, located
from geo_embed.registry import CALIBRATIONS, FUSIONS, GPS_LOSSES, HEADS, STATE_LOSSES

DEFAULT_BACKBONE = "geolocal/StreetCLIP"

# Names that a registry knows: built-in ones, and those that plugins have registered.
Fusion = Annotated[str, AfterValidator(FUSIONS.check)]
HeadKind = Annotated[str, AfterValidator(HEADS.check)]
StateLoss = Annotated[str, AfterValidator(STATE_LOSSES.check)]
GpsLoss = Annotated[str, AfterValidator(GPS_LOSSES.check)]
CalibrationKind = Annotated[str, AfterValidator(CALIBRATIONS.check)]

# What of one pass through a backbone can be kept.
Feature = Literal["image_embeds", "pooler_output", "token_mean"]
FEATURES: tuple[Feature, ...] = get_args(Feature)

CellKind = Literal["kmeans", "quad", "voronoi"]
Preset = Literal["pigeon", "best"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
OnBadImage = Literal["fail", "skip"]
OnDamagedImage = Literal["fail", "skip", "accept"]
Tracker = Literal["local", "tensorboard", "wandb", "trackio"]
EnsembleMethod = Literal["average", "weighted", "voting", "majority", "rrf", "stacking"]
# What an ensemble's point is of its members' points, and what may be asked for.
EnsemblePoint = Literal["median", "mean"]
PointChoice = Literal["auto", "median", "mean"]
# What runs are listed by: the newest, the best, by name, the nearest.
RunOrder = Literal["age", "score", "name", "km"]


# Beyond any use, and small enough that nothing overflows where several are multiplied: of things that are counted, of hidden
# layers' widths, of waits (seconds, minutes).
_MANY, _WIDEST, _LONGEST = 10_000_000, 65_536, 1e9


# Of the paths, what may lie in a bucket.
_IN_BUCKETS = ("cache_dir", "train_images", "test_images")


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Paths(_Group):
    """Where things lie. Relative paths start at the working directory."""

    data_root: Path = Field(Path("data/raw"), description="folder of the CSVs and the image folders")
    train_csv: Path | None = Field(None, description="default: train_ground_truth.csv under the data root")
    test_csv: Path | None = Field(None, description="default: sample_submission.csv under the data root")
    state_mapping_csv: Path | None = Field(None, description="default: state_mapping.csv under the data root")
    train_images: Path | None = Field(
        None,
        description="folder, archive or s3://, gs://, az://BUCKET/PREFIX; default: train_images under the data root",
    )
    test_images: Path | None = Field(None, description="the same; default: test_images under the data root")
    cache_dir: Path = Field(
        Path("cache"), description="embedding stores; a folder, or s3://, gs://, az://BUCKET/PREFIX"
    )
    runs_dir: Path = Field(Path("runs"), description="trained runs")
    submissions_dir: Path = Field(Path("submissions"), description="submission files")
    reports_dir: Path = Field(Path("reports"), description="reports: HTML files")

    @field_validator("*", mode="wrap")
    @classmethod
    def _where_it_may_lie(
        cls, location: object, as_path: ValidatorFunctionWrapHandler, field: ValidationInfo
    ) -> object:
        where = f"paths.{field.field_name}"
        if isinstance(location, str | Path):
            find = located if field.field_name in _IN_BUCKETS else local_path
            path = find(location, where=where)
            if isinstance(path, Address):
                return path
            # As text: what is validated from JSON may be no `Path` yet.
            location = str(path)
        return as_path(location)

    def csv(self, split: str) -> Path:
        """The CSV of a split: the ground truth for `train`, the submission template for `test`."""
        if split == "train":
            return self.train_csv or self.data_root / "train_ground_truth.csv"
        return self.test_csv or self.data_root / "sample_submission.csv"

    def images(self, split: str) -> Path:
        """The image folder of a split."""
        folder = self.train_images if split == "train" else self.test_images
        return folder or self.data_root / f"{split}_images"

    def mapping(self) -> Path:
        """The CSV that names the states."""
        return self.state_mapping_csv or self.data_root / "state_mapping.csv"


class GpsBox(_Group):
    """A box of latitudes and longitudes in degrees; an edge that isn't given comes from the training places.

    A western edge east of the eastern one makes a box across 180°: Fiji lies between 176 and −178.
    """

    lat_min: float | None = Field(None, ge=-90, le=90, description="southern edge (degrees)")
    lat_max: float | None = Field(None, ge=-90, le=90, description="northern edge (degrees)")
    lon_min: float | None = Field(
        None, ge=-180, le=180, description="western edge (degrees); east of lon_max: across 180"
    )
    lon_max: float | None = Field(None, ge=-180, le=180, description="eastern edge (degrees)")

    @model_validator(mode="after")
    def _ordered(self) -> "GpsBox":
        if self.lat_min is not None and self.lat_max is not None and self.lat_min >= self.lat_max:
            raise ValueError("lat_min must lie below lat_max")
        if self.lon_min is not None and self.lon_min == self.lon_max:
            raise ValueError("lon_min and lon_max are the same: a box without width")
        return self

    @property
    def edges(self) -> tuple[float | None, float | None, float | None, float | None]:
        """South, north, west, east."""
        return self.lat_min, self.lat_max, self.lon_min, self.lon_max


class Model(_Group):
    """The backbone, its features, and the heads on top."""

    backbone_name: str = Field(
        DEFAULT_BACKBONE, description="hub id, model directory, or the name that an import was given"
    )
    backbones: tuple[str, ...] = Field(
        (),
        description="several backbones, in place of backbone_name: heads are fitted on the embeddings of all, joined by sample id; "
        "commands that take one backbone take the first",
    )
    fingerprint: str | None = Field(
        None,
        description="take the store with this fingerprint, where several fit; default: the one that fits",
    )
    feature: Literal["image_embeds", "pooler_output"] = Field(
        "image_embeds", description="what is cached: the projected embedding, or the pooled state before it"
    )
    features: Literal["auto"] | tuple[Feature, ...] = Field(
        "auto",
        description="further features of the same pass, beside that one in the same store: image_embeds, pooler_output, token_mean "
        "(the mean over all tokens); auto: none on a CPU, all that the backbone has on a GPU",
    )
    head_features: Literal["own", "all"] | tuple[Feature, ...] = Field(
        "own",
        description="features of the store that heads are fitted on, joined as those of several backbones are; own: what "
        "model.feature names; all: every one that the store has",
    )
    view_names: tuple[str, ...] = Field(
        ("north", "east", "south", "west"), min_length=1, description="views, in the order of the cached rows"
    )
    exact: bool = Field(
        False, description="resize with PIL, bit-equal to transformers; slower than the default resize"
    )
    dtype: Dtype = Field(
        "auto",
        description="precision of the backbone; auto: bfloat16 on CUDA, float16 on mps, float32 on CPU. "
        "Stored as float16, as float32 only where float32 is asked for by name",
    )
    device: Device = Field(
        "auto",
        description="where models run; heads and fine-tuning on the CPU where it is mps, which has no float64",
    )
    deterministic: bool | None = Field(
        None,
        description="let cuDNN take the same algorithm each time, and try none out; default: as torch has it",
    )
    tf32: bool | None = Field(
        None,
        description="let CUDA multiply float32 with 10 bits of mantissa, in matrices and in cuDNN; default: as torch has it",
    )
    plugins: tuple[str, ...] = Field(
        (),
        description="Python files or modules whose import registers fusions, heads, losses or calibrations to be "
        "named here; they run as you do, and a run's own are not loaded for it",
    )
    fusion: Fusion | None = Field(
        None,
        description="how the views of a sample become one vector; "
        "default: average for pigeon, chosen by inner validation for best",
    )
    directional: bool = Field(False, description="add a learnt vector per view before the views are fused")
    standardise: bool = Field(False, description="give every feature mean 0 and variance 1 first")
    unit_length: bool = Field(
        False,
        description="divide embeddings, less their mean, by their length, rather than every feature by its deviation (probe, cell-probe)",
    )
    head: HeadKind = Field(
        "separate",
        description="separate: a network for the state, one for the point; dual: both over one trunk; "
        "hierarchical: the point is an offset from the predicted state's centre; geocells: states and cells, "
        "the point is the cells' geometric median; probe: logistic regression of the states, solved by L-BFGS, and "
        "the cells that go with them; cell-probe: states and cells, both as geocells learns them but linear, solved by "
        "L-BFGS; discriminant: states by linear discriminant analysis, in closed form; "
        "view-discriminant: that of every view, and their evidence multiplied",
    )
    point: Literal["head", "median"] = Field(
        "head",
        description="head: the GPS head's point; median: the geometric median of the states' centres "
        "(geocells and probe: always that of the cells)",
    )
    cells: CellKind = Field(
        "kmeans",
        description="kmeans: on the sphere, across borders; quad, voronoi: of even size, within a state",
    )
    cell_samples: int = Field(15, ge=1, le=_MANY, description="training samples per cell, about")
    most_cells: int = Field(1200, ge=1, le=100_000, description="no more cells than this")
    head_hidden: int = Field(
        512, ge=1, le=_WIDEST, description="width of the first layer of either head, and of a trunk"
    )
    head_depth: int = Field(2, ge=1, le=256, description="layers of a trunk (dual, geocells)")
    gps_hidden: int = Field(256, ge=1, le=_WIDEST, description="width of the second layer of the GPS head")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of hidden units dropped in training")
    gps_box: GpsBox = Field(
        GpsBox(), description="range of the GPS head, and of a submission's points before they draw a warning"
    )

    @field_validator("plugins", mode="before")
    @classmethod
    def _one_plugin(cls, plugins: object) -> object:
        return (plugins,) if isinstance(plugins, str) else plugins

    @model_validator(mode="before")
    @classmethod
    def _first_backbone(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        named = values.get("backbones")
        named = [named] if isinstance(named, str) else named
        if isinstance(named, list | tuple) and named and isinstance(named[0], str):
            return {**values, "backbones": named, "backbone_name": named[0]}
        return values

    @field_validator("backbones")
    @classmethod
    def _backbones_differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"{repeated} is named twice")
        return names

    @model_validator(mode="after")
    def _one_fingerprint(self) -> "Model":
        if self.fingerprint is not None and len(self.backbones) > 1:
            raise ValueError("model.fingerprint names one store, and model.backbones several backbones")
        return self

    @property
    def backbone_names(self) -> tuple[str, ...]:
        """The backbones whose embeddings heads are fitted on: one, or several."""
        return self.backbones or (self.backbone_name,)

    def with_backbone(self, name: str) -> "Model":
        """The same settings with one backbone alone."""
        return self.model_copy(update={"backbone_name": name, "backbones": ()})

    @field_validator("view_names")
    @classmethod
    def _views_differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("a view is repeated")
        return names


class Training(_Group):
    """How heads are fitted."""

    preset: Preset = Field(
        "best",
        description="best: chooses its own recipe by inner validation, within budget_seconds; "
        "pigeon: the plain one, which the settings below belong to",
    )
    budget_seconds: float | None = Field(
        None,
        gt=0,
        le=_LONGEST,
        description="what `best` may cost, about, on a two-core machine (seconds); default: by the "
        "number of samples",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the initial weights and the batches")
    split_seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="seed of the held-out samples and of all folds: runs of one split_seed, whatever their seed, hold the same "
        "samples out and can be combined",
    )
    val_split: float = Field(0.1, gt=0, lt=1, description="share of the training samples held out")
    epochs: int = Field(20, ge=1, le=_MANY, description="most epochs to train")
    batch_size: int = Field(128, ge=1, le=_MANY, description="samples per step")
    learning_rate: float = Field(1e-3, gt=0, description="peak rate of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="decoupled decay of AdamW, on weight matrices only")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps with a linearly rising rate")
    l2: float = Field(0.01, ge=0, description="penalty of a probe: l2 / 2 times its squared weights")
    shrinkage: float = Field(
        0.3,
        gt=0,
        le=1,
        description="of a discriminant's covariance towards one that is the same in all directions",
    )
    clip_norm: float = Field(1.0, gt=0, description="largest norm of a step's gradient")
    patience: int = Field(
        5, ge=1, le=_MANY, description="epochs without a better validation score before stopping"
    )
    tau_km: float = Field(300.0, gt=0, le=1e6, description="temperature of the haversine soft labels (km)")
    state_loss: StateLoss = Field(
        "haversine",
        description="haversine: soft labels from the distances between the states' centres; pigeon: from those "
        "between the sample and the centres; cross_entropy: hard labels",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of a hard label spread over all states (cross_entropy)"
    )
    class_weights: bool = Field(False, description="weigh each state by the inverse of its samples")
    state_weight: float = Field(0.8, ge=0, description="weight of the states' loss")
    gps_loss: GpsLoss = Field(
        "mse",
        description="of the point: mse, mae, smooth_l1 of the error in degrees or, by gps_normalise, in spans of the "
        "region's box; or haversine, great-circle km / 5000",
    )
    gps_normalise: bool = Field(
        True,
        description="divide errors of latitude and longitude by the height and width of the training places' box (mse, mae, "
        "smooth_l1): in degrees the point's loss outweighs the states'",
    )
    gps_weight: float = Field(0.2, ge=0, description="weight of the point's loss")
    cell_weight: float = Field(1.0, ge=0, description="weight of the cells' loss (geocells, cell-probe)")
    score_weight: float = Field(
        0.0, ge=0, description="weight of 1 − the expected competition score of the states' probabilities"
    )
    view_dropout: float = Field(0.0, ge=0, lt=1, description="chance that a view is hidden in training")
    view_swap: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="chance that a view is taken from another training sample of the same cell (geocells)",
    )
    step_views: int = Field(
        0,
        ge=0,
        le=1000,
        description="views of a sample that a training step looks at, drawn anew each time; in the last fifth of the epochs, "
        "and with 0, all; fusions that treat views alike",
    )
    calibration: CalibrationKind = Field(
        "none",
        description="of the states' probabilities, fitted on the held-out samples: one temperature, or a factor "
        "and an offset per state",
    )
    temperature: float | None = Field(
        None,
        ge=0.01,
        le=100,
        description="divide the logarithms of the states' probabilities by this number, > 1 for less sure ones, in place of a fitted calibration",
    )
    refine: bool = Field(
        False, description="move the point to the nearest training samples in the learnt space (geocells)"
    )
    validation: Literal["random", "spatial"] = Field(
        "random", description="spatial: samples closer than group_km are held out together, or not at all"
    )
    group_km: float = Field(5.0, gt=0, le=1e6, description="distance below which samples stay together (km)")
    folds: int = Field(
        1,
        ge=1,
        le=1000,
        description="fit this many times, each part held out once; the run answers with their average",
    )
    seeds: int = Field(1, ge=1, le=1000, description="fit this many times from other seeds, and average")

    @model_validator(mode="after")
    def _one_calibration(self) -> "Training":
        if self.temperature is not None and self.calibration != "none":
            raise ValueError(
                f"a temperature of {self.temperature:g} takes the place of a fitted calibration, and calibration is "
                f"{self.calibration}: give one of the two"
            )
        return self


class Augment(_Group):
    """How strongly training pictures are changed; 0 (and 1 for crop) leaves them as they are."""

    brightness: float = Field(0.2, ge=0, lt=1, description="factor from 1 − x to 1 + x, one for all views")
    contrast: float = Field(0.2, ge=0, lt=1, description="factor from 1 − x to 1 + x, one for all views")
    saturation: float = Field(0.2, ge=0, lt=1, description="factor from 1 − x to 1 + x, one for all views")
    hue: float = Field(0.02, ge=0, le=0.5, description="largest turn to either side, in full turns")
    crop: float = Field(
        0.8, gt=0, le=1, description="smallest share of the area that is kept, each view its own"
    )
    blur: float = Field(0.1, ge=0, le=1, description="chance of a slight blur")
    view_dropout: float = Field(
        0.1, ge=0, lt=1, description="chance that a view is hidden, never the last one"
    )
    flip: float = Field(
        0.0,
        ge=0,
        le=1,
        description="chance of a mirrored scene, east and west swapped; writing is mirrored, too",
    )


class Finetune(_Group):
    """How the backbone is trained, from images."""

    epochs: int = Field(3, ge=1, le=_MANY, description="most epochs to train")
    batch_size: int | None = Field(
        None,
        ge=1,
        le=_MANY,
        description="samples per pass, before accumulation; default: 32, 512 on a card of 70 GB or more",
    )
    accumulate: int | None = Field(
        None, ge=1, le=_MANY, description="passes per step; default: 4, 2 on a card of 70 GB or more"
    )
    backbone_lr: float = Field(1e-5, ge=0, description="peak rate of the backbone")
    head_lr: float = Field(1e-3, ge=0, description="peak rate of fusion and heads")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the rate from each layer to the one below it"
    )
    weight_decay: float = Field(
        0.05, ge=0, description="decoupled decay; none on norms, biases and embeddings"
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps with a linearly rising rate")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of a step's gradient")
    patience: int = Field(
        3, ge=1, le=_MANY, description="epochs without a better validation score before stopping"
    )
    last_layers: int | None = Field(
        None,
        ge=0,
        le=_MANY,
        description="train only so many of the backbone's last layers; default: all, embeddings too",
    )
    gradual: bool = Field(
        False, description="start with the last layers and let more of them be trained in each epoch"
    )
    lora_rank: int = Field(
        0, ge=0, le=_WIDEST, description="train low-rank updates of so many ranks instead; needs peft"
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay per step of an average of the weights, smaller at first; 0: none",
    )
    wise_ft: float = Field(
        1.0, ge=0, le=1, description="how far from the frozen weights to the trained ones the result lies"
    )
    checkpointing: bool = Field(
        False, description="recompute activations instead of keeping them: less memory"
    )
    compile: bool = Field(False, description="compile the backbone with torch.compile")
    channels_last: bool = Field(False, description="keep pictures in channels-last order")
    sharded: bool = Field(
        False,
        description="of several processes, let each keep a part of the model only (FSDP2), not a copy: less memory",
    )
    augment: Augment = Field(Augment(), description="how training pictures are changed")
    checkpoint_minutes: float = Field(
        10.0, gt=0, le=_LONGEST, description="between two checkpoints, beside one per epoch"
    )
    keep_checkpoints: int = Field(2, ge=1, le=_MANY, description="last checkpoints kept, and the best")


class Inference(_Group):
    """Extraction, prediction, submission."""

    batch_size: int | None = Field(
        None,
        ge=1,
        le=_MANY,
        description="images per pass through the backbone; default: 256 on CUDA, 32 on CPU",
    )
    compile: bool = Field(
        False,
        description="extract with a backbone that torch.compile compiles first: a minute or more, for speed on a GPU",
    )
    workers: int | None = Field(None, ge=1, le=4096, description="decoding threads; default: one per core")
    chunk_rows: int = Field(
        512, ge=1, le=_MANY, description="samples per chunk of a new store: the unit of commit"
    )
    tta: bool = Field(
        False,
        description="predict by the average over a few sure variants of each picture",
    )
    on_bad_image: OnBadImage = Field(
        "fail", description="fail: list bad pictures and stop; skip: record them in the store and go on"
    )
    on_damaged_image: OnDamagedImage | None = Field(
        None,
        description="what to do with pictures that decode, but with pixels that the decoder had to make up: fail and skip as "
        "on_bad_image (its value is the default), accept: take them as they are, and say which",
    )
    max_state_idx: int = Field(
        49,
        ge=0,
        le=_MANY,
        description="largest state_idx a submission may name; a larger one in the mapping raises it",
    )
    competition: str = Field(
        "", description="where `geo submission send` sends to: the last part of kaggle.com/competitions/NAME"
    )

    @property
    def with_damaged(self) -> OnDamagedImage:
        """What is done with damaged pictures."""
        return self.on_damaged_image or self.on_bad_image


class Tracking(_Group):
    """What is said while working, and kept about a run."""

    progress_seconds: float = Field(
        PROGRESS_SECONDS, gt=0, le=_LONGEST, description="between progress lines off a terminal (seconds)"
    )
    note: str = Field("", description="free text for a run's provenance")
    tracker: Tracker = Field(
        "local",
        description="what else shows the scores of fit-heads, sweep and finetune; `local`: their run alone",
    )
    project: str = Field(
        "geo-embed", min_length=1, description="of wandb, unless WANDB_PROJECT names one, and of trackio"
    )


class Config(_Group):
    """All settings. Immutable; build one with `get_config`."""

    paths: Paths = Paths()
    model: Model = Model()
    training: Training = Training()
    finetune: Finetune = Finetune()
    inference: Inference = Inference()
    tracking: Tracking = Tracking()
