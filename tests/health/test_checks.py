"""`geo doctor` says what is there and what to type, ends with 3 where something needed is missing, and never fails itself."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from small import UNPRIVILEGED, Country, Nursery, Ran, Small, command

from geo_embed.backbones import pace
from geo_embed.health.checks import Check, diagnose
from geo_embed.settings import resolve

# In the place of the default backbone's 24 layers of 1,024, whose pace is measured where nobody names another.
NARROW = {"hidden_size": 64, "intermediate_size": 128, "image_size": 56}
NARROWED = f"import geo_embed.backbones.pace as pace; pace.STREETCLIP |= {NARROW!r}\n"


def checks(ran: Ran) -> dict[str, Check]:
    return {check["name"]: Check(**check) for check in ran.json["checks"]}


def test_where_all_is_there_it_says_so_and_ends_with_0(
    country: Country, run: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = command(capsys, *country.options(tmp_path), "--json", "doctor")
    assert ran.code == 0, ran.out
    by_name = checks(ran)
    assert {
        "python",
        "packages",
        "torch",
        "transformers",
        "zarr",
        "device",
        "cores",
        "memory",
    } <= by_name.keys()
    assert {"cache_dir", "runs_dir", "kaggle", "chromium"} <= by_name.keys()
    assert "128 samples, 4 views, all pictures there" in by_name["train data"].message
    assert str(country.backbone) in by_name["weights"].message
    pace = (
        rf"1,000 samples of 4 views by {re.escape(str(country.backbone))}: about [\d,]+ (s|min) in float32.*"
    )
    assert re.fullmatch(pace, by_name["pace"].message)
    assert "train by" in by_name["stores"].message
    assert "128 × 4 × 768, 100% complete" in by_name["stores"].message
    assert by_name["runs"].message == f"1 in {tmp_path / 'runs'}: first"
    shown = command(capsys, *country.options(tmp_path), "doctor")
    assert len([line for line in shown.out.splitlines() if line.startswith("ok ")]) == len(by_name)


def test_where_nothing_is_there_it_says_what_to_type_and_ends_with_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four layers of 1,024 at 336 pixels: once after the first time tells as much here as three times.
    monkeypatch.setattr(pace, "_PASSES", 1)
    ran = command(capsys, "--json", "doctor")
    assert ran.code == 3
    by_name = checks(ran)
    assert {name for name, check in by_name.items() if not check.ok} == {"train data", "test data", "weights"}
    assert "hf download geolocal/StreetCLIP" in by_name["weights"].hint
    # How long it takes needs no weights: a few layers of its architecture are timed.
    takes = r"1,000 samples of 4 views by geolocal/StreetCLIP: about \d+ (min|h \d+ min) in float32.*"
    assert re.fullmatch(takes, by_name["pace"].message)
    assert "paths.data_root=DIR" in by_name["train data"].hint
    assert "not made yet" in by_name["runs_dir"].message
    assert list(tmp_path.iterdir()) == []


def test_what_it_tells_to_type_has_the_options_that_it_was_called_with(
    country: Country, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--set", "paths.cache_dir=my cache", "--set", f"model.backbone_name={country.backbone}")
    shown = command(capsys, *options, "doctor").out
    assert f"→ geo {shlex.join(options)} extract --split all" in shown


def test_a_pictures_folder_that_is_gone_is_no_fault_where_they_are_embedded(
    own: Country, tmp_path: Path
) -> None:
    shutil.rmtree(own.images("train"))
    (own.images("test") / "img_000003_north.jpg").unlink()
    by_name = {check.name: check for check in diagnose(lambda: (own.config(), {}))}
    assert by_name["train data"].ok
    assert "512 of 512 pictures are missing" in by_name["train data"].message
    shutil.rmtree(own.root / "cache")
    by_name = {check.name: check for check in diagnose(lambda: (own.config(), {}))}
    assert (by_name["train data"].ok, by_name["test data"].ok) == (False, False)
    assert by_name["test data"].hint == "geo data check --split test"


def test_faults_of_every_kind_are_findings(small: Small, tmp_path: Path) -> None:
    """A cache with a store that isn't one, a runs folder that is a file, weights that are none, a table that is none."""
    (tmp_path / "runs").write_text("a file")
    (small.root / "cache" / "x-0123456789abcdef" / "train.zarr").mkdir(parents=True)
    backbone = Path(shutil.copytree(small.backbone, tmp_path / "backbone"))
    (backbone / "model.safetensors").write_bytes(b"nothing")
    small.csv("train").write_bytes(b"\xff\xfe\0\0")
    config = small.config(model__backbone_name=str(backbone), paths__runs_dir=tmp_path / "runs")
    by_name = {check.name: check for check in diagnose(lambda: (config, {}))}
    for name in ("runs_dir", "stores", "train data", "weights"):
        assert not by_name[name].ok, name
        assert by_name[name].message, name
    assert by_name["test data"].ok


@pytest.mark.parametrize("library", ["torch", "zarr", "pandas", "huggingface_hub", "packaging"])
def test_a_library_that_cannot_be_loaded_is_a_finding(
    nursery: Nursery, library: str, country: Country, tmp_path: Path
) -> None:
    """In a process that forgets it, and all of ours, which imported it."""
    broken = (
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {library!r}:\n"
        f"            raise ImportError('libcudart.so: cannot open', name={library!r})\n"
        f"for name in [name for name in sys.modules if name.split('.')[0] in ({library!r}, 'geo_embed')]:\n"
        "    del sys.modules[name]\n"
        "sys.meta_path.insert(0, Broken())\n"
        "from geo_embed.cli import main\n"
    )
    ran = nursery.start_in(tmp_path, *country.options(Path()), "--json", "doctor", before=broken).end()
    assert ran.code == 3, ran.err
    assert ran.err == ""
    wrong = [check for check in checks(ran).values() if not check.ok]
    assert any(f"{library} can't be imported" in check.message for check in wrong)


def test_settings_that_are_wrong_are_a_finding_and_the_rest_is_looked_at(
    country: Country, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "STREETCLIP", pace.STREETCLIP | NARROW)
    small = {"model.backbone_name": str(country.backbone)}
    (tmp_path / "geo.toml").write_text("[training]\nsead = 1\n")
    by_name = {check.name: check for check in diagnose(lambda: resolve(overrides=small))}
    assert not by_name["settings"].ok
    assert "training.sead" in by_name["settings"].message
    assert "torch" in by_name
    (tmp_path / "geo.toml").write_text("[training]\nseed = 1\n")
    by_name = {check.name: check for check in diagnose(lambda: resolve(overrides=small))}
    assert by_name["settings"].ok
    assert "1 from geo.toml" in by_name["settings"].message


def test_folders_and_settings_without_permission_are_findings(
    country: Country, nursery: Nursery, tmp_path: Path
) -> None:
    for name in ("cache", "runs", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0)
    (tmp_path / "geo.toml").touch(mode=0)
    small = f"model.backbone_name={country.backbone}"
    words = ("--set", "paths.data_root=data", "--set", small, "--json", "doctor")
    try:
        ran = nursery.start_in(tmp_path, *words, before=NARROWED + UNPRIVILEGED).end()
        (tmp_path / "geo.toml").unlink()
        again = nursery.start_in(tmp_path, *words, before=NARROWED + UNPRIVILEGED).end()
    finally:
        for name in ("cache", "runs", "data"):
            (tmp_path / name).chmod(0o700)
    assert (ran.code, ran.err) == (again.code, again.err) == (3, "")
    assert "Permission denied (geo.toml)" in checks(ran)["settings"].message
    by_name = checks(again)
    assert by_name["settings"].ok
    for name in ("cache_dir", "runs_dir", "train data", "runs"):
        assert not by_name[name].ok, name
    assert by_name["cache_dir"].hint == "chmod u+rwx cache"
