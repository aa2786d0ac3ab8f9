"""The synthetic country keeps the real dataset's layout, is honest about itself, and is the same every time."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_embed.synthetic import country as synthetic
from geo_embed.synthetic.views import VIEWS

LOCATIONS = 44
IMAGE_COLUMNS = [f"image_{view}" for view in VIEWS]


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def inside(polygons: list[list[list[float]]], lon: float, lat: float) -> bool:
    """Winding number of the point, ring by ring: a different method from the one that placed it."""
    for ring in polygons:
        corners = np.array(ring) - (lon, lat)
        angles = np.arctan2(corners[:, 1], corners[:, 0])
        turns = (np.diff(angles) + np.pi) % (2 * np.pi) - np.pi
        if abs(turns.sum()) > np.pi:
            return True
    return False


@pytest.fixture(scope="module")
def country(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("country")
    synthetic.write_country(root, locations=LOCATIONS, seed=3, workers=1)
    return root


def test_the_same_seed_gives_the_same_bytes_however_many_workers_paint(country: Path, tmp_path: Path) -> None:
    synthetic.write_country(tmp_path, locations=LOCATIONS, seed=3, workers=2)
    assert digests(tmp_path) == digests(country)


def test_another_seed_gives_other_places_and_other_pictures(country: Path, tmp_path: Path) -> None:
    synthetic.write_country(tmp_path, locations=4, seed=4, workers=1)
    reseeded, original = digests(tmp_path), digests(country)
    pictures = [name for name in reseeded if name.endswith(".jpg")]
    assert len(pictures) == 16
    assert not [name for name in pictures if reseeded[name] == original[name]]
    assert not np.allclose(
        synthetic.true_locations(LOCATIONS, 3)[0]["latitude"],
        synthetic.true_locations(LOCATIONS, 4)[0]["latitude"],
    )


def test_no_two_pictures_are_alike(country: Path) -> None:
    pictures = [digest for name, digest in digests(country).items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures) == 4 * LOCATIONS


def test_the_root_holds_exactly_the_dataset(country: Path) -> None:
    assert sorted(path.name for path in country.iterdir()) == [
        "README.txt",
        "sample_submission.csv",
        "state_mapping.csv",
        "test_images",
        "train_ground_truth.csv",
        "train_images",
    ]


def test_headers_and_types_are_those_of_the_contract(country: Path) -> None:
    train = pd.read_csv(country / "train_ground_truth.csv")
    assert list(train) == ["sample_id", *IMAGE_COLUMNS, "state", "state_idx", "latitude", "longitude"]
    template = pd.read_csv(country / "sample_submission.csv")
    guesses = [f"predicted_state_idx_{rank}" for rank in range(1, 6)]
    assert list(template) == [
        "sample_id",
        *IMAGE_COLUMNS,
        *guesses,
        "predicted_latitude",
        "predicted_longitude",
    ]
    mapping = pd.read_csv(country / "state_mapping.csv")
    assert list(mapping) == ["state_idx", "state"]
    for table, integers, decimals in (
        (train, ["sample_id", "state_idx"], ["latitude", "longitude"]),
        (template, ["sample_id", *guesses], ["predicted_latitude", "predicted_longitude"]),
        (mapping, ["state_idx"], []),
    ):
        assert all(table[name].dtype == np.int64 for name in integers)
        assert all(table[name].dtype == np.float64 for name in decimals)
    assert (template[[*guesses, "predicted_latitude", "predicted_longitude"]] == 0).all(axis=None)


def test_one_fifth_is_test_and_ids_count_from_zero(country: Path) -> None:
    train = pd.read_csv(country / "train_ground_truth.csv")
    template = pd.read_csv(country / "sample_submission.csv")
    assert train["sample_id"].tolist() == list(range(35))
    assert template["sample_id"].tolist() == list(range(9))
    assert [len(table) for table in synthetic.true_locations(2, 0)] == [1, 1]


def test_the_tables_name_the_pictures_that_are_there(country: Path) -> None:
    for table, folder in (
        ("train_ground_truth.csv", "train_images"),
        ("sample_submission.csv", "test_images"),
    ):
        rows = pd.read_csv(country / table)
        for view in VIEWS:
            assert rows[f"image_{view}"].tolist() == [f"img_{i:06d}_{view}.jpg" for i in rows["sample_id"]]
        named = set(rows[IMAGE_COLUMNS].to_numpy().ravel())
        assert named == {path.name for path in (country / folder).iterdir()}


def test_thirty_three_states_keep_their_alphabetical_numbers(country: Path) -> None:
    mapping = pd.read_csv(country / "state_mapping.csv")
    numbers = dict(zip(mapping["state"], mapping["state_idx"], strict=True))
    assert len(mapping) == len(numbers) == 33
    assert numbers.items() >= {
        *{"Alaska": 1, "California": 4, "Florida": 8, "Iowa": 14, "Michigan": 21, "Nevada": 27}.items(),
        *{
            "New Mexico": 30,
            "South Carolina": 39,
            "South Dakota": 40,
            "Utah": 43,
            "West Virginia": 47,
        }.items(),
    }
    assert "Hawaii" not in numbers
    assert mapping["state_idx"].between(0, 49).all()
    assert mapping["state_idx"].is_monotonic_increasing
    assert (mapping["state_idx"].diff().dropna() > 1).any()


def test_every_state_is_in_train_as_soon_as_there_is_room(country: Path) -> None:
    train = pd.read_csv(country / "train_ground_truth.csv")
    mapping = pd.read_csv(country / "state_mapping.csv")
    assert set(zip(train["state_idx"], train["state"], strict=True)) == set(
        zip(mapping["state_idx"], mapping["state"], strict=True)
    )


def test_states_are_unevenly_but_not_extremely_common() -> None:
    share = synthetic.true_locations(5000, 0)[0]["state"].value_counts(normalize=True)
    assert share.iloc[0] > 3 * share.iloc[-1]
    assert share.iloc[0] < 0.15
    assert share.iloc[-1] > 0.005


def test_every_place_lies_inside_its_state() -> None:
    path = Path(synthetic.__file__).parent / "us_states.json"
    outlines = {state["state_idx"]: state for state in json.loads(path.read_text())["states"]}
    for table in synthetic.true_locations(400, 1):
        for row in table.to_dict("records"):
            state = outlines[row["state_idx"]]
            assert state["name"] == row["state"]
            assert inside(state["polygons"], row["longitude"], row["latitude"]), row


def test_the_written_truth_is_the_one_that_is_told(country: Path) -> None:
    train, test = synthetic.true_locations(LOCATIONS, 3)
    written = pd.read_csv(country / "train_ground_truth.csv")
    pd.testing.assert_frame_equal(written[list(train)], train, check_dtype=False, check_exact=True)
    assert len(test) == len(pd.read_csv(country / "sample_submission.csv"))


def test_outlines_cover_the_fifty_states() -> None:
    outlines = synthetic.state_outlines()
    names = [name for name, _ in outlines.values()]
    assert list(outlines) == list(range(50))
    assert names == sorted(names)
    for known, lon, lat in ((43, -111.89, 40.76), (0, -86.3, 32.37), (49, -104.82, 41.14), (1, -149.9, 61.2)):
        holds = [idx for idx, (_, rings) in outlines.items() if inside([r.tolist() for r in rings], lon, lat)]
        assert holds == [known]
    for _, rings in outlines.values():
        assert all((ring[0] == ring[-1]).all() and ring[:, 0].max() < 0 for ring in rings)


def test_pictures_are_square_rgb_jpegs_that_say_they_are_synthetic(country: Path) -> None:
    for path in [*country.glob("*_images/*_south.jpg")]:
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (256, 256))
            assert b"synthetic" in picture.info["comment"]
    assert "SYNTHETIC" in (country / "README.txt").read_text()


def test_the_image_size_is_a_choice(tmp_path: Path) -> None:
    synthetic.write_country(tmp_path, locations=2, seed=0, image_size=48)
    sizes = {Image.open(path).size for path in tmp_path.glob("*/*.jpg")}
    assert sizes == {(48, 48)}


def test_progress_counts_every_place_once(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    synthetic.write_country(
        tmp_path, locations=5, seed=0, image_size=32, progress=lambda *counts: seen.append(counts)
    )
    assert seen == [(done, 5) for done in range(1, 6)]


@pytest.mark.parametrize(
    "wrong",
    [{"locations": 1, "seed": 0}, {"locations": 4, "seed": -1}, {"locations": 4, "seed": 0, "image_size": 8}],
)
def test_impossible_wishes_are_refused_before_anything_is_written(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"at least|negative"):
        synthetic.write_country(tmp_path / "country", **wrong)
    assert not (tmp_path / "country").exists()


def test_place_and_state_can_be_seen_in_the_pictures(country: Path) -> None:
    """Mean ground colour differs between desert and forest, so there is something to learn."""
    rows = pd.read_csv(country / "train_ground_truth.csv")

    def greenness(states: list[str]) -> float:
        names = rows[rows["state"].isin(states)][IMAGE_COLUMNS].to_numpy().ravel()
        pixels = [
            np.asarray(Image.open(io.BytesIO((country / "train_images" / n).read_bytes()))) for n in names
        ]
        band = np.stack(pixels)[:, 140:170].mean(axis=(0, 1, 2))
        return float(band[1] - band[0])

    assert greenness(["Georgia", "Virginia", "Florida", "Louisiana"]) > 10 + greenness(
        ["Arizona", "Nevada", "Utah", "New Mexico"]
    )
