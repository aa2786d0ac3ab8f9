"""`geo data explore`: a page about a dataset that says what is in it, and obeys nothing that is in it."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Geo
from PIL import Image
from small import Small

from geo_embed.config import Config
from geo_embed.data.samples import load_samples
from geo_embed.errors import GeoError
from geo_embed.reporting.data_page import explore_data


class Read(HTMLParser):
    """A page's tags with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def explored(config: Config, *, pictures: bool = False, splits: tuple[str, ...] = ("train", "test")) -> Read:
    path, _ = explore_data(config, list(splits), Path("page.html"), pictures=pictures)
    return Read(path.read_text(encoding="utf-8"))


@pytest.mark.cut(train=24, test=6)
def test_the_page_counts_what_there_is(small: Small) -> None:
    config = small.config()
    train, test = load_samples(config, "train"), load_samples(config, "test")
    read = explored(config)
    tiles = read.text
    pictures = sum(int(part.images.named.sum()) for part in (train, test))
    for phrase in (
        f"train samples {len(train)}",
        f"test samples {len(test)}",
        f"pictures decoded {pictures:,}",
        "problems 0",
    ):
        assert phrase in tiles, phrase
    assert train.truth is not None
    assert f"classes {len(set(train.truth.state_idx.tolist()))} " in tiles
    assert "64 × 64" in tiles
    assert "Nothing odd was found" in tiles
    places = next(attrs["d"] for tag, attrs in read.tags if tag == "path" and attrs.get("class") == "places")
    assert places is not None
    assert places.count("M") == len(train)


@pytest.mark.cut(train=24, test=6)
def test_the_page_asks_for_nothing_and_runs_nothing(small: Small) -> None:
    read = explored(small.config(), pictures=True)
    assert not {"script", "iframe", "object", "link", "form", "base"} & {tag for tag, _ in read.tags}
    for tag, attrs in read.tags:
        assert not [name for name in attrs if name.startswith("on") or name == "style"], tag
        for name in ("src", "href"):
            value = attrs.get(name)
            assert value is None or value.startswith(("#", "data:image/jpeg;base64,")), value
    policy = next(
        attrs["content"] for _, attrs in read.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


@pytest.mark.cut(train=24, test=6)
def test_names_ids_and_files_are_shown_as_they_are(small: Small) -> None:
    config = small.config()
    mapping = config.paths.mapping()
    table = pd.read_csv(mapping)
    truth = pd.read_csv(small.data / "train_ground_truth.csv")
    nasty = "<script>alert('x')</script>"
    first = int(truth["state_idx"][0])
    table.loc[table["state_idx"] == first, "state"] = nasty
    table.to_csv(mapping, index=False)
    truth.loc[truth["state_idx"] == first, "state"] = nasty
    truth["sample_id"] = [f'"><img src=x onerror=y>{k}' for k in range(len(truth))]
    odd = "a<b>&\u202e.jpg"
    shutil.copy(config.paths.images("train") / truth["image_north"][0], config.paths.images("train") / odd)
    truth.loc[0, "image_north"] = odd
    truth.to_csv(small.data / "train_ground_truth.csv", index=False)
    read = explored(config)
    assert not {"script", "img"} & {tag for tag, _ in read.tags}
    assert nasty in read.text
    assert '"><img src=x onerror=y>0' in read.text
    assert "a<b>&\\u202e.jpg" in read.text
    assert "\u202e" not in read.text


@pytest.mark.cut(train=60, test=6)
def test_copies_damage_blanks_and_places_that_are_off_are_found(small: Small) -> None:
    config = small.config()
    train, test = load_samples(config, "train"), load_samples(config, "test")
    folder = config.paths.images("train")
    # A test picture that is a training picture at another quality, and one that is its very file.
    with Image.open(folder / str(train.images[0, 0])) as image:
        image.save(config.paths.images("test") / str(test.images[0, 0]), "JPEG", quality=40)
    shutil.copy(folder / str(train.images[1, 0]), config.paths.images("test") / str(test.images[1, 0]))
    (folder / str(train.images[2, 0])).write_bytes(b"no picture")
    Image.fromarray(np.full((64, 64, 3), 90, dtype=np.uint8)).save(folder / str(train.images[3, 0]))
    # A place of a class that has others where it should be: by a single one its name couldn't be told.
    table = small.table()
    off = int(table.index[table["state_idx"] == table["state_idx"].mode()[0]][0])
    table.loc[off, ["latitude", "longitude"]] = [-33.9, 18.4]
    small.write(table)
    _, dataset = explore_data(config, ["train", "test"], Path("page.html"))
    assert [(twin.first, twin.second, twin.across) for twin in dataset.twins] == [
        (f"train {train.sample_id[0]}", f"test {test.sample_id[0]}", True)
    ]
    assert dataset.overlap == 1
    read = Read(Path("page.html").read_text())
    for phrase in (
        "Test samples with a picture that a training sample has, too: 1.",
        "nearly the same, and not the same file: 1, a test sample with a training sample: 1.",
        "undecodable-image, 1",
        "outside-outline, 1",
        "-33.9000, 18.4000",
        "Samples more than 50 km outside of the outline of their class: 1;",
    ):
        assert phrase in read.text, phrase
    looks = dataset.parts[0].looks
    assert looks is not None
    assert np.argwhere(looks.blank).tolist() == [[3, 0]]


@pytest.mark.cut(train=24, test=6)
def test_with_a_limit_some_samples_are_decoded_the_headers_of_all_are_read_and_the_page_says_so(
    small: Small,
) -> None:
    """Sizes and copies are known of all, upright; damage is found where it was looked for."""
    config = small.config()
    train = load_samples(config, "train")
    paths = [config.paths.images("train") / str(name) for name in train.images[:, 0]]
    with Image.open(paths[1]) as image:
        exif = image.getexif()
        # On its side.
        exif[0x0112] = 6
        image.resize((40, 64)).save(paths[1], exif=exif)
    paths[3].write_bytes(paths[2].read_bytes())
    # In half: the header stays.
    for path in (paths[0], paths[5]):
        path.write_bytes(path.read_bytes()[:900])
    _, dataset = explore_data(config, ["train", "test"], Path("page.html"), limit=2)
    read = Read(Path("page.html").read_text())
    for phrase in (
        "Decoded (--limit): the pictures of 2 of 24 train samples and 2 of 6 test samples, evenly through the CSV.",
        "pictures decoded 15",
        "64 × 40",
        "Pictures of train that occur, byte by byte, in several samples: 1.",
        "among those that were decoded",
        "undecodable-image, 1",
    ):
        assert phrase in read.text, phrase
    looks = dataset.parts[0].looks
    assert looks is not None
    assert np.flatnonzero(looks.decoded).tolist() == [0, 23]
    assert [fault[:2] for fault in looks.faults] == [(0, 0)]
    assert looks.present[1:].all()
    everything = explored(config)
    assert "undecodable-image, 2" in everything.text
    assert "Every picture was decoded" in everything.text


@pytest.mark.cut(train=24, test=6)
def test_pictures_are_in_the_page_only_where_they_are_asked_for(small: Small) -> None:
    config = small.config()
    name = str(load_samples(config, "train").images[0, 0])
    path = config.paths.images("train") / name
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x010E] = "taken at home"
        image.save(path, exif=exif)
    assert not [attrs for tag, attrs in explored(config).tags if tag == "img"]
    shown = [attrs for tag, attrs in explored(config, pictures=True).tags if tag == "img"]
    assert len(shown) == 4 * (12 + 6)
    assert all(attrs["alt"] in ("north", "east", "south", "west") for attrs in shown)
    import base64

    data = str(shown[0]["src"]).partition(",")[2]
    assert b"taken at home" not in base64.b64decode(data)


@pytest.mark.cut(train=24, test=6)
def test_without_pictures_or_a_split_the_rest_is_shown(small: Small) -> None:
    config = small.config()
    shutil.rmtree(config.paths.images("train"))
    shutil.rmtree(config.paths.images("test"))
    (small.data / "sample_submission.csv").unlink()
    read = explored(config)
    for phrase in (
        "There is no picture in",
        "Duplicates are looked for in pictures",
        "test samples can't be read",
        "missing-image, 96",
    ):
        assert phrase in read.text, phrase
    (small.data / "train_ground_truth.csv").unlink()
    Path("page.html").write_text("before")
    with pytest.raises(GeoError, match="no such file"):
        explore_data(config, ["train", "test"], Path("page.html"))
    assert Path("page.html").read_text() == "before"


@pytest.mark.cut(train=24, test=6)
def test_a_country_of_its_own_with_three_views_and_text_ids(tmp_path: Path, small: Small) -> None:
    """One class is a single place; ids are text; classes have hulls."""
    path = small.data / "train_ground_truth.csv"
    table = pd.read_csv(path).drop(columns="image_west")
    table["sample_id"] = [f"ort-{k}" for k in range(len(table))]
    table["state_idx"] = [7, *[3] * (len(table) - 1)]
    table["state"] = ["Süd", *["Nord"] * (len(table) - 1)]
    table.to_csv(path, index=False)
    small.config().paths.mapping().write_text("state_idx,state\n3,Nord\n7,Süd\n")
    config = small.config()
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"view_names": ("north", "east", "south")})}
    )
    read = explored(config, splits=("train",))
    for phrase in ("classes 2 ", "3: north, east, south", "ort-0", "Süd", "hulls of the training places"):
        assert phrase in read.text, phrase


@pytest.mark.cut(train=24, test=6)
def test_the_command_prints_where_the_page_is(geo: Geo, small: Small, tmp_path: Path) -> None:
    done = geo(
        "--json",
        "--set",
        f"paths.data_root={small.data}",
        "data",
        "explore",
        "--split",
        "train",
        "--out",
        "new/it.html",
        "--limit",
        "3",
    )
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["page"] == "new/it.html"
    assert result["samples"] == {"train": 24}
    assert result["decoded"] == {"train": 12}
    assert (tmp_path / "new" / "it.html").read_text(encoding="utf-8").endswith("</html>\n")
