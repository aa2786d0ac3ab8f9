"""The app on Modal: what it declares, and that each of its functions does its work, without an account."""

import runpy
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small import Small

from geo_embed.errors import GeoError
from geo_embed.settings import known_keys

modal = pytest.importorskip("modal", reason="needs the extra `modal`")
from geo_embed.scale import modal_app  # noqa: E402

# Which is why a folder stands in for it.
pytestmark = pytest.mark.filterwarnings("ignore:.*will not have access to the mounted Volume")


class Recorder:
    """Stands in for the volume, which is Modal's: what was asked of it, in order."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def reload(self) -> None:
        self.asked.append(("reload",))

    def commit(self) -> None:
        self.asked.append(("commit",))

    @contextmanager
    def batch_upload(self, force: bool) -> Iterator["Recorder"]:
        yield self

    def put_directory(self, folder: str, at: str) -> None:
        self.asked.append(("put", folder, at))


@pytest.fixture
def volume(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A folder in the volume's place, with a small dataset uploaded to it."""
    recorder = Recorder()
    monkeypatch.setattr(modal_app, "VOLUME_ROOT", tmp_path / "volume")
    monkeypatch.setattr(modal_app, "volume", recorder)
    shutil.copytree(small.data, tmp_path / "volume" / "raw")
    return recorder


@pytest.fixture
def settings(small: Small) -> str:
    """The user's, as one would type them: a tiny backbone on the CPU."""
    wanted = {
        key: value
        for key, value in small.settings().items()
        if not key.startswith("paths.") and key != "training.preset"
    }
    wanted |= {"finetune.batch_size": 2, "finetune.accumulate": 1, "finetune.epochs": 1}
    return shlex.join(f"{key}={value}" for key, value in wanted.items())


def test_the_app_the_volume_the_gpu_and_the_hours_are_those_that_are_documented(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declared: dict[str, dict[str, Any]] = {}
    declare = modal.App.function

    def record(app: Any, **options: Any) -> Any:
        def decorate(function: Any) -> Any:
            declared[function.__name__] = options
            return declare(app, **options)(function)

        return decorate

    monkeypatch.setattr(modal.App, "function", record)
    made = runpy.run_path(str(modal_app.__file__), run_name="declared")

    assert made["app"].name == "geoguessr-competition"
    assert made["volume"].name == "geoguessr-data"
    assert set(declared) == {"extract", "fit_heads", "finetune", "submit", "pipeline"}
    assert [name for name, options in declared.items() if "gpu" in options] == [
        "extract",
        "finetune",
        "submit",
    ]
    assert {options["gpu"] for options in declared.values() if "gpu" in options} == {"A100-80GB"}
    for name in ("extract", "fit_heads", "finetune", "submit"):
        assert declared[name]["timeout"] == 8 * 60 * 60
        assert declared[name]["volumes"] == {"/data": made["volume"]}


def test_the_image_gets_each_requirement_once_in_the_version_that_is_installed_here() -> None:
    import torch

    pinned = modal_app.pinned_requirements()

    assert f"torch=={torch.__version__.partition('+')[0]}" in pinned
    assert all(text.count("==") == 1 and "+" not in text for text in pinned)
    assert len(pinned) == len({text.partition("==")[0] for text in pinned})
    assert not any(text.startswith(("modal", "timm", "peft")) for text in pinned)


def test_fine_tuning_asks_for_settings_that_there_are() -> None:
    assert set(modal_app.FINETUNE) <= set(known_keys())
    config = modal_app.volume_config(**modal_app.FINETUNE)
    assert config.finetune.batch_size == 512
    assert config.finetune.accumulate == 2


def test_a_users_setting_goes_before_the_apps(settings: str, volume: Recorder) -> None:
    config = modal_app.volume_config(f"{settings} 'paths.runs_dir=/data/my runs'", **modal_app.FINETUNE)

    assert config.finetune.batch_size == 2
    assert config.finetune.checkpointing
    assert config.paths.runs_dir == Path("/data/my runs")
    assert config.paths.cache_dir == modal_app.VOLUME_ROOT / "cache"


def test_a_wrong_setting_is_one_clear_line() -> None:
    with pytest.raises(GeoError, match=r"training\.sede"):
        modal_app.volume_config("training.sede=1")


@pytest.mark.cut(train=40, test=4, chunk_rows=16)
@pytest.mark.slow
def test_each_stage_runs_and_is_committed_to_the_volume(volume: Recorder, settings: str) -> None:
    extractions = modal_app.extract.local(settings=settings)
    assert [(made["split"], made["computed"]) for made in extractions] == [("train", 160), ("test", 16)]
    fit = modal_app.fit_heads.local(settings=settings)
    assert fit["run"] == "heads"
    tuned = modal_app.finetune.local(settings=settings, compile_backbone=False)
    assert tuned["run"] == "finetuned"
    submission = Path(modal_app.submit.local(tuned["run"], settings))

    assert volume.asked == [("reload",), ("commit",)] * 4
    root = modal_app.VOLUME_ROOT
    assert submission.parent == root / "submissions"
    assert len(submission.read_text().splitlines()) == 5
    assert sorted(path.name for path in (root / "runs").iterdir() if path.is_dir()) == ["finetuned", "heads"]


def test_what_a_failed_stage_had_done_is_committed_too(volume: Recorder, settings: str) -> None:
    with pytest.raises(GeoError):
        modal_app.fit_heads.local(settings=settings)

    assert volume.asked == [("reload",), ("commit",)]


def test_an_upload_sends_the_dataset(small: Small, volume: Recorder) -> None:
    modal_app.upload.info.raw_f(str(small.data))

    assert volume.asked == [("put", str(small.data), "/raw")]


def test_a_dataset_with_faults_is_refused_before_a_byte_is_sent(small: Small, volume: Recorder) -> None:
    small.picture(0).unlink()

    with pytest.raises(GeoError, match="1 problem"):
        modal_app.upload.info.raw_f(str(small.data))
    assert volume.asked == []


def test_the_pipeline_ends_with_the_file_of_the_run_that_was_asked_for(
    volume: Recorder, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("extract", "fit_heads", "finetune", "submit"):
        function = getattr(modal_app, name)
        monkeypatch.setattr(function, "remote", function.local, raising=False)

    submission = Path(modal_app.pipeline.local(settings=settings, with_finetune=False))

    assert submission.is_file()
    assert submission.parent == modal_app.VOLUME_ROOT / "submissions"
