"""A predictor of one directory, or of a repository on the hub: pictures or embeddings to states, probabilities and a point."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import PyTorchModelHubMixin
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from geo_embed.answers import Predictions
from geo_embed.backbones.backbone import Backbone
from geo_embed.blocks import Block
from geo_embed.config import Config
from geo_embed.data.images import Preprocessing
from geo_embed.devices import pick_device, torch_switches
from geo_embed.errors import GeoError, PlainError
from geo_embed.exports.directory import (
    BACKBONE,
    CARD,
    CONFIG,
    RUN,
    backbone_places,
    check_directory,
    describe,
    files_of,
    is_ours,
    read_export,
)
from geo_embed.exports.network import Answers, PictureNetwork, network_of
from geo_embed.files import replacing_directory
from geo_embed.heads.predictor import Panel
from geo_embed.hub import download, repository_of
from geo_embed.prediction.pictures import arrange, embed_places, predict_embedded, read_arrays
from geo_embed.runs.backbone import inputs_of, load_backbone_for
from geo_embed.runs.recipe import Ensemble, load_ensemble, load_heads
from geo_embed.runs.run import Run


class GeoPredictor(nn.Module, PyTorchModelHubMixin, library_name="geo_embed", tags=["geolocation"]):  # type: ignore[call-arg, misc]
    """What `geo export` wrote, ready to answer.

        predictor = GeoPredictor.from_pretrained("DIR")
        answer = predictor.predict(["n.jpg", "e.jpg", "s.jpg", "w.jpg"])[0]
        answer["states"][0]["state"], answer["latitude"], answer["longitude"]

    Answers are those of the run that it was made of, on the same machine to the last bit. As a module it maps tensors to tensors: see
    `forward`.

    Args:
        directory: of an export.
        device: `auto`, `cpu`, `cuda` or `mps`.
        dtype: precision of the backbone; default: as in training.
        settings: `inference` of them counts: pictures per pass, what to do with damaged ones, averaging over variants.

    Raises:
        GeoError: no export, a damaged one, or weights that aren't the ones that it was made with.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        device: str = "auto",
        dtype: str | None = None,
        settings: Config | None = None,
    ) -> None:
        super().__init__()
        self.directory = Path(directory).absolute()
        self.described, self.run = read_export(self.directory)
        config = settings or Config()
        self._config = config.model_copy(update={"model": config.model.model_copy(update={"device": device})})
        # All is in memory from here on: another export may take this one's place, or the directory go.
        self._heads: dict[Path, Panel] = {}
        self._ensembles: dict[Path, Ensemble | None] = {}
        self._inputs = inputs_of(self.run, self._ensemble_of)
        answer = network_of(self.run, self._heads_of, self._ensemble_of, self._inputs)
        self.network: nn.Module = answer
        self._towers: list[Backbone] = []
        by_backbone = self._inputs.by_backbone
        if not self.described.heads_only:
            for sources, place in zip(by_backbone, backbone_places(len(by_backbone)), strict=True):
                name = str(self.directory / place)
                tower = load_backbone_for(self.run, sources, pick_device(device), name, dtype=dtype)
                self._towers.append(tower)
            self.network = PictureNetwork(self._towers, answer, by_backbone)
        self.requires_grad_(False).eval()
        # The points need double precision, which mps hasn't.
        answer.to(pick_device(device, float64=True))

    @property
    def views(self) -> tuple[str, ...]:
        """The views of a place, in the order in which their pictures are given."""
        return self.run.config.model.view_names

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What is done to a picture before the tower sees it; None of heads alone. Raises GeoError where there are several towers."""
        if len(self._towers) > 1:
            raise GeoError(
                f"there are {len(self._towers)} backbones, each with its own",
                where=self.directory,
                hint="take preprocessings, which has one of each",
            )
        return next(iter(self.preprocessings), None)

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The same of every tower, in the order of the embeddings' columns; empty of heads alone."""
        return tuple(tower.preprocessing for tower in self._towers)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Which columns of the embeddings are of which backbone, or feature of it."""
        return self._inputs.blocks

    @property
    def states(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""
        return self.run.labels.names

    def predict(
        self,
        images: Any = None,
        *,
        embeddings: ArrayLike | Mapping[str, ArrayLike] | None = None,
        present: ArrayLike | None = None,
    ) -> list[dict[str, Any]]:
        """Where places are: for each of them what `geo predict --images … --json` prints: `states`, the likeliest first, each with
        `state_idx`, `state`, `probability`; `latitude` and `longitude` in degrees. The arguments are those of `predictions`.
        """
        predictions = self.predictions(images, embeddings=embeddings, present=present)
        return [predictions.describe(row) for row in range(len(predictions))]

    def predictions(
        self,
        images: Any = None,
        *,
        embeddings: ArrayLike | Mapping[str, ArrayLike] | None = None,
        present: ArrayLike | None = None,
    ) -> Predictions:
        """The same as arrays.

        Args:
            images: one place, or a list of places. A place is a list of one picture per view in the order of `views`, None where one is
                missing, or a dict from views to pictures. A picture is a PIL image, a path, a file's bytes, or a uint8 array (height,
                width, 3).
            embeddings: in place of pictures (N, V, D), by the backbone that the run was fitted on; of several features of it, or several
                backbones, side by side in the order of `blocks`, or an array for each by the names there.
            present: (N, V) bool beside `embeddings`, False where a view is missing; default: all are there.

        Raises:
            GeoError: as `predict_images` and `predict_arrays`; or pictures, where the export is of heads alone.
        """
        if (images is None) == (embeddings is None):
            raise GeoError("give pictures, or embeddings=", where="GeoPredictor.predict")
        if embeddings is not None:
            return self._answer([read_arrays(self.run, embeddings, present, self._inputs)])
        if present is not None:
            raise GeoError(
                "present goes with embeddings",
                where="GeoPredictor.predict",
                hint="of pictures give None where one is missing",
            )
        if not self._towers:
            raise GeoError(
                "this is an export of heads alone: there is no backbone to look at pictures with",
                where=self.directory,
                hint="give embeddings=; or export the run without --heads-only",
            )
        # The module may have been moved.
        parameters = [next(tower.module.parameters()) for tower in self._towers]
        towers = [
            replace(tower, device=parameter.device, dtype=parameter.dtype)
            for tower, parameter in zip(self._towers, parameters, strict=True)
        ]
        with torch_switches(self._config.model):
            places = arrange(images, self.views)
            by_backbone = self._inputs.by_backbone
            return self._answer(embed_places(self._config, self.run, places, towers, by_backbone))

    def _answer(self, variants: Sequence[tuple[NDArray[Any], NDArray[np.bool_]]]) -> Predictions:
        with torch_switches(self._config.model):
            return predict_embedded(
                self._config, self.run, variants, self._heads_of, self._ensemble_of, self._inputs
            )

    def forward(self, given: Tensor | Sequence[Tensor], present: Tensor) -> Answers:
        """Tensors on any device to tensors on the module's, as the ONNX file has it: probabilities (B, C), and points (B, 2) float64 in
        degrees.

        Args:
            given: pictures (B, V, 3, H, W) uint8, resized and cropped, red first; of several backbones a list of such tensors, one for each
                as it wants them (`preprocessings`); of heads alone embeddings (B, V, D).
            present: (B, V) bool, which views are there.
        """
        # The prior lies where the module was moved; `predict` moves the heads beside it to where it has them answer.
        heads = self.network.answer if isinstance(self.network, PictureNetwork) else self.network
        device = next(
            tensor.device for name, tensor in heads.named_buffers() if name.endswith("prior_states")
        )
        if any(tensor.device != device for tensor in (*heads.parameters(), *heads.buffers())):
            heads.to(device)
        tensors = [given] if isinstance(given, Tensor) else list(given)
        towers = [next(tower.module.parameters()).device for tower in self._towers] or [device]
        if len(tensors) != len(towers):
            raise GeoError(
                f"{len(tensors)} tensors, where {len(towers)} are taken",
                where="GeoPredictor",
                hint="give one for each, as `preprocessings` says"
                if self._towers
                else "give one of embeddings",
            )
        tensors = [tensor.to(where) for tensor, where in zip(tensors, towers, strict=True)]
        answers: Answers = self.network(tensors[0] if len(tensors) == 1 else tensors, present.to(device))
        return answers

    def _heads_of(self, run: Run) -> Panel:
        """Loaded once: with neighbours they are large."""
        if run.path not in self._heads:
            self._heads[run.path] = load_heads(run)
        return self._heads[run.path]

    def _ensemble_of(self, run: Run) -> Ensemble | None:
        if run.path not in self._ensembles:
            self._ensembles[run.path] = load_ensemble(run)
        return self._ensembles[run.path]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **options: Any,
    ) -> "GeoPredictor":
        """An export by its directory, or by its repository's id on the hub.

        Args:
            pretrained_model_name_or_path: `DIR`, or `USER/REPO`.
            force_download, token, cache_dir, local_files_only, revision: of a repository, as the hub's own mixin has them.
            options: `device`, `dtype` and `settings`, as the class has them.

        Raises:
            GeoError: as the class; or there is no such directory, or repository.
            UnreachableError: the hub doesn't answer, and the repository isn't in its cache here.
        """
        directory = Path(pretrained_model_name_or_path)
        if not directory.is_dir():
            repository = _repository(str(pretrained_model_name_or_path))
            try:
                directory = download(
                    repository,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    # An ONNX file is as large as all the rest.
                    allow_patterns=[CARD, CONFIG, f"{RUN}/*", f"{BACKBONE}/*"],
                )
            except PlainError as error:
                # Most often it was meant to be one.
                error.what = f"there is no such directory; as a repository: {error.what}"
                raise
        # Not by the mixin's own: it would take arguments from what a config.json says.
        return cls(directory, **options)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **options: Any,
    ) -> str | None:
        """Copy the files that it was loaded from; the directory appears whole.

        Args:
            save_directory: a new directory, or of an export, which is replaced.
            push_to_hub, repo_id, options: as the hub's own mixin takes them.

        Raises:
            GeoError: something else lies there, or itself; another export took the place of the one that it was loaded from; or the
                disk is full.
        """
        directory = Path(save_directory).absolute()
        check_directory(directory)
        if directory.resolve() == self.directory.resolve():
            raise GeoError("it lies there already", where=directory, hint="name another directory")
        hint = "load it again: GeoPredictor.from_pretrained"
        if describe(self.directory) != self.described:
            raise GeoError(
                "another export lies now where this predictor was loaded from",
                where=self.directory,
                hint=hint,
            )
        onnx = (self.described.onnx or {}).get("file")
        names = [name for name in files_of(self.directory) if is_ours(name)]
        if onnx is not None and onnx not in names:
            raise GeoError(
                f"{onnx} isn't there: of a repository it isn't downloaded",
                where=self.directory,
                hint="download the whole repository: hf download USER/REPO --local-dir DIR",
            )
        with replacing_directory(directory) as writing:
            for name in names:
                (writing / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.directory / name, writing / name)
        if push_to_hub:
            address: str = super().push_to_hub(repo_id or directory.name, **options)
            return address
        return None

    def __repr__(self) -> str:
        return f"<predictor {self.described.run}: {', '.join(self.views)} to {len(self.states)} classes>"


def _repository(name: str) -> str:
    """The repository that a name means which is no directory's."""
    name = repository_of(name)
    if "/" not in name.strip("/"):
        raise GeoError(
            "there is no such directory",
            where=name,
            hint="name the directory of an export, or a repository on the hub: USER/REPO",
        )
    return name
