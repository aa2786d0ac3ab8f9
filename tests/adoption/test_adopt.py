"""`geo data adopt`: from other people's files to a dataset on which `data check` finds nothing and every stage works."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from pictures import encoded, scene
from PIL import Image
from small import Ran, command

from geo_embed.adoption.adopt import Adopted, adopt
from geo_embed.config import Config
from geo_embed.data.check import check_data
from geo_embed.errors import GeoError
from geo_embed.settings import resolve

if TYPE_CHECKING:
    from conftest import Country

PLACES = {"Lima": (-12.05, -77.04), "Oslo": (59.91, 10.75), "Suva": (-18.14, 178.44)}
Command = Callable[..., Ran]


def gps(latitude: float, longitude: float) -> Image.Exif:
    """EXIF of a place, in degrees and minutes."""
    tags = Image.Exif()
    tags[0x8825] = {
        1: "NS"[latitude < 0],
        2: (int(abs(latitude)), abs(latitude) % 1 * 60, 0.0),
        3: "EW"[longitude < 0],
        4: (int(abs(longitude)), abs(longitude) % 1 * 60, 0.0),
    }
    return tags


def paint(path: Path, seed: int, place: tuple[float, float] | None = None) -> Path:
    """A picture that no other seed gives, with a place in its EXIF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = scene(48, 40, seed)
    image.save(path, **({} if place is None else {"exif": gps(*place)}))
    return path


def near(name: str, k: int) -> tuple[float, float]:
    """The k-th place around a town, 11 km from the one before."""
    latitude, longitude = PLACES[name]
    return latitude + k / 10, longitude


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A folder per class, four pictures each, with places by EXIF."""
    root = tmp_path / "classes"
    for c, name in enumerate(PLACES):
        for k in range(4):
            paint(root / name / f"{name}{k}.jpg", 10 * c + k, near(name, k))
    return root


def settings_of(out: Path) -> Config:
    """As the commands read them in the dataset's directory."""
    before = Path.cwd()
    os.chdir(out)
    try:
        return resolve()[0].model_copy(
            update={"paths": resolve()[0].paths.model_copy(update={"data_root": out})}
        )
    finally:
        os.chdir(before)


def sound(adopted: Adopted) -> Config:
    """The settings of a dataset in which `data check`, decoding, finds no problem; nor any litter beside it."""
    config = settings_of(adopted.directory)
    for split, samples in (("train", adopted.train), ("test", adopted.test)):
        if samples:
            checked = check_data(config, split, decode=True)
            assert (checked.samples, checked.problems) == (samples, [])
    assert not [path for path in adopted.directory.parent.iterdir() if path.name.startswith(".")]
    return config


def table(out: Path, name: str = "train_ground_truth.csv") -> pd.DataFrame:
    return pd.read_csv(out / name, dtype={"sample_id": str})


def reasons(adopted: Adopted) -> dict[str, int]:
    return {group["reason"]: group["count"] for group in adopted.left_out}


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def town_rows(root: Path, count: int = 4, **columns: Callable[[int], object]) -> list[dict[str, Any]]:
    """Rows of pictures below `root`, their names, places and town."""
    rows = []
    for c, name in enumerate(PLACES):
        for k in range(count):
            picture = paint(root / f"{name}_{k}.png", 10 * c + k)
            latitude, longitude = near(name, k)
            rows.append({"file": picture.name, "lat": latitude, "lon": longitude, "town": name})
    return rows


# ---------------------------------------------------------------- folders


def test_a_folder_per_class_with_places_by_exif(classes: Path, tmp_path: Path) -> None:
    before = contents(classes)
    adopted = adopt(Config(), classes, tmp_path / "out")
    assert (adopted.kind, adopted.train, adopted.test, adopted.classes, adopted.views) == (
        "folder",
        12,
        0,
        3,
        ("picture",),
    )
    assert (adopted.left_out, adopted.left_out_csv, adopted.notes) == ([], None, [])
    config = sound(adopted)
    assert config.paths.images("train") == classes
    rows = table(adopted.directory)
    assert rows["state"].value_counts().to_dict() == dict.fromkeys(PLACES, 4)
    sample = rows.set_index("sample_id").loc["Suva2"]
    assert (sample["latitude"], sample["longitude"]) == pytest.approx(near("Suva", 2))
    assert contents(classes) == before


@pytest.mark.parametrize("how", ["link", "copy"])
def test_pictures_are_linked_or_copied_where_that_is_wanted(classes: Path, tmp_path: Path, how: Any) -> None:
    adopted = adopt(Config(), classes, tmp_path / "out", pictures=how)
    config = sound(adopted)
    picture = Path("Oslo/Oslo1.jpg")
    assert config.paths.images("train") == adopted.directory / "train_images"
    assert (classes / picture).samefile(adopted.directory / "train_images" / picture) == (how == "link")
    assert contents(adopted.directory / "train_images") == contents(classes)


def test_what_has_no_place_no_pixels_or_no_business_there_is_left_out_and_named(
    classes: Path, tmp_path: Path
) -> None:
    paint(classes / "Lima" / "nowhere.jpg", 90)
    paint(classes / "Lima" / "gulf.jpg", 91, (0.0, 0.0))
    paint(classes / "Lima" / "beyond.jpg", 92, (95.5, 10.0))
    (classes / "Oslo" / "broken.jpg").write_bytes(b"\xff\xd8 and no more")
    (classes / "Oslo" / "notes.txt").write_text("fjord")
    (classes / "Oslo" / ".DS_Store").write_text("")
    (classes / "Oslo" / "again.jpg").write_bytes((classes / "Oslo" / "Oslo0.jpg").read_bytes())
    (classes / "Suva" / "elsewhere.jpg").write_bytes((classes / "Lima" / "Lima0.jpg").read_bytes())
    adopted = adopt(Config(), classes, tmp_path / "out")
    assert reasons(adopted) == {
        "contradicting-picture": 2,
        **dict.fromkeys(
            (
                "no-coordinates",
                "null-island",
                "out-of-range",
                "unreadable-picture",
                "no-picture",
                "duplicate-picture",
            ),
            1,
        ),
    }
    sound(adopted)
    left_out = pd.read_csv(tmp_path / "out" / "left_out.csv").set_index("where")
    assert left_out.loc["Lima/nowhere.jpg", "detail"] == "no coordinates in its EXIF"
    assert left_out.loc["Oslo/again.jpg", "reason"] in ("duplicate-picture", "")
    assert set(left_out.index[left_out["reason"] == "contradicting-picture"]) == {
        "Lima/Lima0.jpg",
        "Suva/elsewhere.jpg",
    }


def test_places_of_a_folder_may_come_from_a_table(classes: Path, tmp_path: Path) -> None:
    for path in classes.rglob("*.jpg"):
        Image.open(io.BytesIO(path.read_bytes())).save(path)
    with pytest.raises(GeoError, match="no coordinates in its EXIF") as refused:
        adopt(Config(), classes, tmp_path / "out")
    assert "--coordinates FILE.csv" in refused.value.hint
    assert not (tmp_path / "out").exists()
    (classes / "metadata.csv").write_text("file_name,lat,lon\n")
    with pytest.raises(GeoError) as refused:
        adopt(Config(), classes, tmp_path / "out")
    assert refused.value.hint == f"--coordinates {classes}/metadata.csv"
    (classes / "metadata.csv").unlink()
    rows = [
        {"filename": f"{name}{k}.jpg", "y": near(name, k)[0], "x": near(name, k)[1]}
        for name in PLACES
        for k in range(3)
    ]
    places = write(tmp_path / "places.csv", rows)
    adopted = adopt(Config(), classes, tmp_path / "out", coordinates=places)
    assert (adopted.train, reasons(adopted)) == (9, {"no-coordinates": 3})
    sound(adopted)
    assert table(adopted.directory).set_index("sample_id").loc["Oslo2", "latitude"] == pytest.approx(60.11)


@pytest.mark.parametrize(
    ("label", "classes"),
    [("countries", {"Fiji", "Norway", "Peru"}), ("cells:2", None), (None, None)],
)
def test_flat_pictures_get_classes_by_countries_or_cells(
    tmp_path: Path, label: str | None, classes: set[str] | None
) -> None:
    for c, name in enumerate(PLACES):
        for k in range(4):
            paint(tmp_path / "flat" / f"IMG_{c}{k}.JPG", 10 * c + k, near(name, k))
    adopted = adopt(Config(), tmp_path / "flat", tmp_path / "out", label=label)
    sound(adopted)
    rows = table(adopted.directory)
    assert classes is None or set(rows["state"]) == classes
    assert rows["state"].nunique() == (3 if classes else 2)
    # Places of a town are together.
    assert rows.groupby(rows["sample_id"].str[4])["state"].nunique().max() == 1
    assert (label is None) == ("cells of the places" in " ".join(adopted.notes))


def test_views_by_a_pattern_stand_in_the_order_of_the_compass_or_as_named(tmp_path: Path) -> None:
    for k in range(4):
        for v, view in enumerate(("east", "north", "west")):
            if (k, view) != (3, "west"):
                paint(
                    tmp_path / "src" / "AB"[k % 2] / f"p_{k}_{view}.jpg",
                    10 * k + v,
                    near("Oslo", k) if v == 1 else None,
                )
    paint(tmp_path / "src" / "A" / "cover.jpg", 99)
    adopted = adopt(Config(), tmp_path / "src", tmp_path / "all", pattern="{id}_{view}.jpg")
    assert (adopted.views, adopted.train) == (("north", "east", "west"), 3)
    assert reasons(adopted) == {"other-name": 1, "missing-view": 1}
    config = sound(adopted)
    assert config.model.view_names == ("north", "east", "west")
    two = adopt(
        Config(),
        tmp_path / "src",
        tmp_path / "two",
        pattern="{id}_{view}.jpg",
        views=("west", "north"),
        keep_incomplete=True,
    )
    assert (two.views, two.train) == (("west", "north"), 4)
    assert settings_of(two.directory).inference.on_bad_image == "skip"
    folders = adopt(Config(), tmp_path / "src", tmp_path / "paths", pattern="{class}/p_{id}_{view}.jpg")
    assert sorted(table(folders.directory)["sample_id"]) == ["0", "1", "2"]


def test_the_sources_own_split_stays_and_its_test_pictures_need_no_place(
    classes: Path, tmp_path: Path
) -> None:
    root = tmp_path / "split"
    root.mkdir()
    classes.rename(root / "train")
    for k in range(3):
        paint(root / "test" / f"q{k}.jpg", 70 + k, near("Oslo", k) if k == 0 else None)
    adopted = adopt(Config(), root, tmp_path / "out")
    assert (adopted.train, adopted.test) == (12, 3)
    sound(adopted)
    truth = table(adopted.directory, "test_ground_truth.csv")
    assert truth["sample_id"].tolist() == ["q0"]
    assert "latitude" not in table(adopted.directory, "sample_submission.csv")


def test_a_share_is_held_out_by_whole_groups_of_places(tmp_path: Path) -> None:
    rows = []
    for c, name in enumerate(PLACES):
        for k in range(10):
            # Pairs a hundred metres apart.
            latitude, longitude = near(name, k // 2)
            picture = paint(tmp_path / "src" / f"{name}{k}.png", 100 * c + k)
            rows.append(
                {"path": picture.name, "lat": latitude + k % 2 / 1000, "lng": longitude, "label": name}
            )
    csv = write(tmp_path / "src" / "t.csv", rows)
    adopted = adopt(Config(), csv, tmp_path / "out", test_share=0.3)
    sound(adopted)
    assert adopted.test_truth == tmp_path / "out" / "test_ground_truth.csv"
    truth, train = table(adopted.directory, "test_ground_truth.csv"), table(adopted.directory)
    assert 6 <= len(truth) <= 12
    assert len(truth) + len(train) == 30
    assert set(train["state"]) == set(PLACES)
    pair = truth["sample_id"].str[:4] + (truth["sample_id"].str[4].astype(int) // 2).astype(str)
    other = train["sample_id"].str[:4] + (train["sample_id"].str[4].astype(int) // 2).astype(str)
    assert not set(pair) & set(other)
    again = adopt(Config(), csv, tmp_path / "again", test_share=0.3)
    assert table(again.directory, "test_ground_truth.csv").equals(truth)


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_of_usual_names_and_any_separator(tmp_path: Path, separator: str) -> None:
    rows = pd.DataFrame(town_rows(tmp_path / "src")).rename(columns={"town": "Country"})
    if separator == "\t":
        rows = rows.rename(columns={"lat": "latitude_deg", "lon": "Lng (WGS84)"})
    rows.to_csv(
        tmp_path / "src" / "t.csv", index=False, sep=separator, decimal="," if separator == ";" else "."
    )
    adopted = adopt(Config(), tmp_path / "src" / "t.csv", tmp_path / "out")
    sound(adopted)
    assert (adopted.train, adopted.classes, adopted.left_out) == (12, 3, [])
    assert table(adopted.directory).set_index("sample_id").loc["Suva_1", "longitude"] == 178.44
    assert ("decimal comma" in " ".join(adopted.notes)) == (separator == ";")


def test_columns_of_other_names_are_named(tmp_path: Path) -> None:
    rows = pd.DataFrame(town_rows(tmp_path / "pictures"))
    rows.columns = pd.Index(["jpg", "phi", "lambda", "commune"])
    csv = tmp_path / "t.csv"
    rows.assign(nr=[f"n{k}" for k in range(12)]).to_csv(csv, index=False)
    with pytest.raises(GeoError, match="no columns of latitude and longitude; it has jpg, phi") as refused:
        adopt(Config(), csv, tmp_path / "out")
    assert "--column latitude=NAME" in refused.value.hint
    columns = {"latitude": "phi", "longitude": "lambda", "image": "jpg", "sample_id": "nr"}
    adopted = adopt(
        Config(), csv, tmp_path / "out", columns=columns, label="commune", images=tmp_path / "pictures"
    )
    sound(adopted)
    assert table(adopted.directory)["sample_id"].tolist() == [f"n{k}" for k in range(12)]
    assert adopted.classes == 3


def test_a_column_per_view_and_one_that_no_row_fills(tmp_path: Path) -> None:
    rows = []
    for k, name in enumerate(PLACES):
        names = {
            f"image_{view}": paint(tmp_path / f"{k}{view}.png", 10 * k + v).name
            for v, view in enumerate(("left", "right"))
        }
        rows.append(
            {
                **names,
                "image_up": "",
                "image_id": k,
                "latitude": PLACES[name][0],
                "longitude": PLACES[name][1],
                "state": name,
                "state_idx": 7 * k,
            }
        )
    adopted = adopt(Config(), write(tmp_path / "t.csv", rows), tmp_path / "out")
    sound(adopted)
    assert (adopted.views, adopted.train) == (("left", "right"), 3)
    assert adopted.notes == ["no sample has a picture of view up: left out"]
    assert table(adopted.directory)["state_idx"].tolist() == [0, 7, 14]
    assert adopted.single == 3


def test_a_table_of_ids_finds_the_views_by_a_pattern(tmp_path: Path) -> None:
    rows = []
    for k, name in enumerate(PLACES):
        for v in (0, 90, 10):
            paint(tmp_path / "img" / f"pano-{k}-{v}.jpg", 100 * k + v)
        rows.append({"id": k, "lat": PLACES[name][0], "lon": PLACES[name][1], "country": name})
    rows.append({"id": 9, "lat": 1.0, "lon": 2.0, "country": "Lima"})
    csv = write(tmp_path / "t.csv", rows)
    adopted = adopt(Config(), csv, tmp_path / "out", images=tmp_path / "img", pattern="pano-{id}-{view}.jpg")
    sound(adopted)
    assert (adopted.views, adopted.train, reasons(adopted)) == (("0", "10", "90"), 3, {"missing-picture": 1})


def test_a_row_per_picture_is_one_sample_of_several_views(tmp_path: Path) -> None:
    rows = []
    for k, name in enumerate(PLACES):
        for v in ("n", "s"):
            picture = paint(tmp_path / f"{k}_{v}.png", 10 * k + (v == "s"))
            rows.append(
                {
                    "image": f"C:\\data\\{picture.name}",
                    "lat": PLACES[name][0],
                    "lon": PLACES[name][1],
                    "label": name,
                }
            )
    adopted = adopt(Config(), write(tmp_path / "t.csv", rows), tmp_path / "out", pattern="{id}_{view}.png")
    sound(adopted)
    assert (adopted.views, adopted.train) == (("n", "s"), 3)


def test_numbers_that_are_none_and_rows_that_are_cut_are_left_out_and_named(tmp_path: Path) -> None:
    rows = town_rows(tmp_path)
    lines = [",".join(map(str, row.values())) for row in rows]
    extra = {
        "not-a-number": "Lima_0.png,12°5'S,3,Lima",
        "no-coordinates": "Lima_0.png,NaN,3,Lima",
        "null-island": "Lima_0.png,0.0,0,Lima",
        "out-of-range": "Lima_0.png,12,181,Lima",
        "ragged-row": "Lima_0.png,12,5,Lima,Peru",
        "missing-picture": "gone.png,12,5,Lima",
        "no-label": "Lima_1.png,12,5,",
        "duplicate-id": lines[0],
    }
    csv = tmp_path / "t.csv"
    csv.write_text("\n".join(["file,lat,lon,town", *lines, *extra.values()]) + "\n")
    adopted = adopt(Config(), csv, tmp_path / "out", label="town")
    assert reasons(adopted) == dict.fromkeys(extra, 1) | {"duplicate-id": 1}
    assert adopted.train == 12
    sound(adopted)
    listed = pd.read_csv(tmp_path / "out" / "left_out.csv").set_index("reason")
    assert listed.loc["not-a-number", "where"] == "t.csv, row 14"
    assert "write decimal degrees" in listed.loc["not-a-number", "detail"]


def test_one_picture_at_two_places_is_a_picture_of_neither(tmp_path: Path) -> None:
    rows = town_rows(tmp_path)
    (tmp_path / "Oslo_1.png").write_bytes((tmp_path / "Oslo_0.png").read_bytes())
    adopted = adopt(Config(), write(tmp_path / "t.csv", rows), tmp_path / "out", label="town")
    assert (adopted.train, reasons(adopted)) == (10, {"contradicting-picture": 2})
    sound(adopted)


def test_swapped_columns_and_longitudes_from_0_to_360_are_understood_and_said(tmp_path: Path) -> None:
    rows = town_rows(tmp_path)
    swapped = [{**row, "lat": row["lon"], "lon": row["lat"]} for row in rows]
    adopted = adopt(Config(), write(tmp_path / "t.csv", swapped), tmp_path / "swapped", label="town")
    assert table(adopted.directory)["longitude"].tolist() == [row["lon"] for row in rows]
    assert "taken for each other" in adopted.notes[0]
    east = [{**row, "lon": row["lon"] % 360} for row in rows]
    adopted = adopt(Config(), write(tmp_path / "t.csv", east), tmp_path / "east", label="town")
    assert np.allclose(table(adopted.directory)["longitude"], [row["lon"] for row in rows])
    assert "0 to 360" in adopted.notes[0]


def test_outlines_of_a_geojson_name_the_classes(tmp_path: Path) -> None:
    rows = town_rows(tmp_path)

    def box(w: float, s: float, e: float, n: float) -> list[list[list[float]]]:
        return [[[w, s], [e, s], [e, n], [w, n], [w, s]]]

    shapes = {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "properties": {"code": 1, "title": "Andes"},
                "geometry": {"type": "Polygon", "coordinates": box(-80, -20, -70, 0)},
            },
            {
                "type": "Feature",
                "properties": {"code": 2, "title": "Isles"},
                "geometry": {"type": "MultiPolygon", "coordinates": [box(175, -20, 185, -15)]},
            },
        ],
    }
    (tmp_path / "shapes.geojson").write_text(json.dumps(shapes))
    csv = write(tmp_path / "t.csv", rows)
    adopted = adopt(Config(), csv, tmp_path / "out", label=f"{tmp_path}/shapes.geojson:title")
    assert table(adopted.directory)["state"].value_counts().to_dict() == {"Andes": 4, "Isles": 4}
    assert reasons(adopted) == {"outside-outlines": 4}
    sound(adopted)
    with pytest.raises(GeoError, match="none of its 2 shapes has a property 'nome'"):
        adopt(Config(), csv, tmp_path / "other", label=f"{tmp_path}/shapes.geojson:nome")


# ---------------------------------------------------------------- benchmarks and Parquet


def test_osv5m_as_it_is_unpacked(tmp_path: Path) -> None:
    root = tmp_path / "osv5m"
    for s, split in enumerate(("train", "test")):
        rows = []
        for k, name in enumerate(PLACES):
            picture = 1000 * (s + 1) + k
            paint(root / "images" / split / f"0{k % 2}" / f"{picture}.jpg", picture)
            place = {
                "id": picture,
                "latitude": near(name, s)[0],
                "longitude": near(name, s)[1],
                "thumb_original_url": "",
            }
            areas = {"country": name[:2].upper(), "region": "R", "sub-region": "", "city": name}
            unique = {
                "unique_region": f"R_{name[:2]}",
                "unique_sub-region": "",
                "unique_city": f"{name}_R",
                "unique_country": name[:2].upper(),
            }
            rows.append({**place, **areas, "quadtree_10_1000": 5, **unique})
        write(root / f"{split}.csv", rows)
    adopted = adopt(Config(), root, tmp_path / "out")
    assert (adopted.kind, adopted.train, adopted.test) == ("osv5m", 3, 3)
    sound(adopted)
    train = table(adopted.directory)
    assert train["state"].tolist() == ["LI", "OS", "SU"]
    assert train["region"].tolist() == ["R_Li", "R_Os", "R_Su"]
    truth = table(adopted.directory, "test_ground_truth.csv")
    assert truth["city"].tolist() == ["Lima_R", "Oslo_R", "Suva_R"]
    assert truth["sub-region"].isna().all()
    # As it is downloaded.
    (root / "images" / "train" / "00.zip").write_bytes(b"PK")
    packed = adopt(Config(), root, tmp_path / "packed")
    assert packed.notes == ["archives beside the pictures aren't looked into: unpack them, 1 in all"]


def test_im2gps3k_is_a_test_split_without_classes(tmp_path: Path) -> None:
    rows = []
    for k, (name, (latitude, longitude)) in enumerate(PLACES.items()):
        picture = paint(tmp_path / "src" / "images" / f"{k}_{name}_1@N00.jpg", k)
        rows.append(
            {"IMG_ID": picture.name, "AUTHOR": "1@N00", "LAT": latitude, "LON": longitude, "S3_Label": 2}
        )
    # A picture twice is the benchmark's own business: all of it counts.
    twin = tmp_path / "src" / "images" / "9_twin_1@N00.jpg"
    twin.write_bytes((tmp_path / "src" / "images" / rows[0]["IMG_ID"]).read_bytes())
    rows.append({**rows[1], "IMG_ID": twin.name})
    write(tmp_path / "src" / "im2gps3k_places365.csv", rows)
    adopted = adopt(Config(), tmp_path / "src", tmp_path / "out")
    assert (adopted.kind, adopted.train, adopted.test, adopted.classes) == ("im2gps3k", 0, 4, 0)
    sound(adopted)
    assert table(adopted.directory, "test_ground_truth.csv")["latitude"].tolist() == [
        *(place[0] for place in PLACES.values()),
        PLACES["Oslo"][0],
    ]


def parquet(path: Path, towns: list[str], *, places: bool = True, start: int = 0) -> None:
    """As `datasets` writes pictures and ClassLabels."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = ["JPEG", "PNG", "WEBP"]
    images = [
        {"bytes": encoded(scene(48, 40, start + k), kinds[k % 3]), "path": f"{k}.x"}
        for k in range(len(towns))
    ]
    columns = {
        "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "latitude": pa.array([near(t, k)[0] if places else None for k, t in enumerate(towns)], pa.float64()),
        "longitude": pa.array([near(t, k)[1] if places else None for k, t in enumerate(towns)], pa.float64()),
        "label": pa.array([sorted(PLACES).index(t) for t in towns], pa.int64()),
        "tags": pa.array([["a"]] * len(towns), pa.list_(pa.string())),
    }
    features = {"label": {"names": sorted(PLACES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    schema = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(schema), path)


def test_parquet_of_datasets_with_pictures_inside(tmp_path: Path) -> None:
    parquet(tmp_path / "hub" / "data" / "train-00000-of-00002.parquet", ["Lima", "Oslo", "Oslo"])
    parquet(tmp_path / "hub" / "data" / "train-00001-of-00002.parquet", ["Suva", "Suva"], start=10)
    parquet(
        tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", ["Lima", "Suva"], places=False, start=20
    )
    adopted = adopt(Config(), tmp_path / "hub", tmp_path / "out")
    assert (adopted.kind, adopted.train, adopted.test, adopted.classes) == ("parquet", 5, 2, 3)
    config = sound(adopted)
    assert table(adopted.directory)["state"].value_counts().to_dict() == {"Oslo": 2, "Suva": 2, "Lima": 1}
    assert len(list(config.paths.images("train").iterdir())) == 5
    assert len(list(config.paths.images("test").iterdir())) == 2
    first = next(path for path in config.paths.images("train").iterdir() if path.suffix == ".jpg")
    assert first.read_bytes()[:2] == b"\xff\xd8"


def test_parquet_without_pictures_or_that_is_none_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"latitude": [1.0], "longitude": [2.0], "url": ["http://x"]}).to_parquet(
        tmp_path / "a.parquet"
    )
    with pytest.raises(GeoError, match="no column has pictures"):
        adopt(Config(), tmp_path / "a.parquet", tmp_path / "out")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(GeoError, match="not a readable Parquet file"):
        adopt(Config(), tmp_path / "b.parquet", tmp_path / "out")


def pictures_of(*names: str, rows: int = 4, start: int = 0) -> dict[str, list[Any]]:
    """Columns of pictures as `datasets` has them, and places."""
    images = {
        name: [
            {"bytes": encoded(scene(48, 40, start + 50 * c + k), "JPEG"), "path": None} for k in range(rows)
        ]
        for c, name in enumerate(names)
    }
    latitude, longitude = zip(*(near("Oslo", start + k) for k in range(rows)), strict=True)
    return images | {"lat": list(latitude), "lon": list(longitude), "label": ["a", "b"] * (rows // 2)}


def test_views_that_differ_in_case_are_one(tmp_path: Path) -> None:
    for k in range(2):
        for view in ("north", "South") if k else ("North", "SOUTH"):
            paint(tmp_path / "src" / f"{k}_{view}.jpg", 10 * k + len(view) * view.islower(), near("Oslo", k))
    detected = adopt(Config(), tmp_path / "src", tmp_path / "found", pattern="{id}_{view}.jpg")
    assert (detected.views, detected.train) == (("North", "SOUTH"), 2)
    named = adopt(
        Config(), tmp_path / "src", tmp_path / "named", pattern="{id}_{view}.jpg", views=("south", "north")
    )
    assert (named.views, named.train) == (("south", "north"), 2)
    sound(named)


def columns(path: Path, columns_of_file: dict[str, list[Any]]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns_of_file), path)
    return path


def test_parquet_as_the_hub_converts_it_has_splits_by_folders_and_gaps_are_no_classes(tmp_path: Path) -> None:
    columns_of_hub = pictures_of("image")
    columns_of_hub["label"] = [0.0, 1.0, float("nan"), None]
    columns(tmp_path / "hub" / "default" / "train" / "0000.parquet", columns_of_hub)
    bare = pictures_of("image", start=10)
    del bare["label"]
    bare["more"] = [{"place": "x"}] * 4
    columns(tmp_path / "hub" / "default" / "train" / "0001.parquet", bare)
    columns(tmp_path / "hub" / "default" / "test" / "0000.parquet", pictures_of("image", start=20))
    adopted = adopt(Config(), tmp_path / "hub", tmp_path / "out")
    assert (adopted.train, adopted.test, reasons(adopted)) == (2, 4, {"no-label": 6})
    sound(adopted)


def test_one_of_several_columns_of_bytes_and_fields_of_a_struct_are_named(tmp_path: Path) -> None:
    columns_of_file = pictures_of("jpg") | {"md5": [b"0123", b"4567", b"89ab", b"cdef"]}
    degrees = zip(columns_of_file.pop("lat"), columns_of_file.pop("lon"), strict=True)
    columns_of_file["at"] = [{"lat": latitude, "lon": longitude} for latitude, longitude in degrees]
    file = columns(tmp_path / "a.parquet", columns_of_file)
    named = {"latitude": "at.lat", "longitude": "at.lon"}
    with pytest.raises(GeoError, match="md5") as refused:
        adopt(Config(), file, tmp_path / "out", columns=named)
    assert refused.value.hint == "where only one column is of pictures, name it: --column image=NAME"
    adopted = adopt(Config(), file, tmp_path / "out", columns=named | {"image": "jpg"})
    assert (adopted.train, adopted.views) == (4, ("picture",))
    sound(adopted)


def test_lists_of_pictures_and_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    listed = pictures_of("images")
    listed["images"] = [[picture] * 2 for picture in listed["images"]]
    with pytest.raises(GeoError, match="'images' has a list of pictures in each row"):
        adopt(Config(), columns(tmp_path / "l.parquet", listed), tmp_path / "out")
    columns(tmp_path / "two" / "a.parquet", pictures_of("image"))
    other = columns(tmp_path / "two" / "b.parquet", pictures_of("picture"))
    with pytest.raises(GeoError, match=r"no pictures in a column 'image', as a\.parquet has") as refused:
        adopt(Config(), tmp_path / "two", tmp_path / "out")
    assert refused.value.where == str(other)


# ---------------------------------------------------------------- whatever the source


def test_nothing_is_written_over_nor_into_the_source_nor_half(classes: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for out, why in ((tmp_path / "out", "something of this name"), (classes / "made", "lies in the source")):
        with pytest.raises(GeoError, match=why):
            adopt(Config(), classes, out)
    with pytest.raises(GeoError, match="nothing of this name"):
        adopt(Config(), tmp_path / "gone", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GeoError, match="there is no picture in this folder"):
        adopt(Config(), tmp_path / "empty", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes", "empty", "out"]


def test_odd_names_are_kept_where_a_csv_can_hold_them_and_left_out_where_not(tmp_path: Path) -> None:
    root = tmp_path / "src"
    rows = []
    for k, name in enumerate(["a\nb", 'q"uo,te', "e\u0301", " lead", "plain"]):
        paint(root / f"{name}.jpg", k)
        # A Mac's CSV of a Linux disk's file.
        written = "\u00e9" if name == "e\u0301" else name
        rows.append({"image": f"{written}.jpg", "lat": k + 1.0, "lon": 2.0, "class": "AB"[k % 2]})
    os.mkfifo(root / "pipe.jpg")
    paint(root / "odd.jpg", 9).rename(Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe.jpg")))
    adopted = adopt(Config(), write(tmp_path / "t.csv", rows), tmp_path / "out", images=root)
    assert (adopted.train, reasons(adopted)) == (4, {"unusable-name": 1, "missing-picture": 1})
    sound(adopted)
    assert table(adopted.directory)["image_picture"].tolist()[:3] == [
        "a\nb.jpg",
        'q"uo,te.jpg',
        "e\u0301.jpg",
    ]
    assert pd.read_csv(tmp_path / "out" / "left_out.csv")["where"].tolist()[0] == "\\xff\\xfe.jpg"


@pytest.mark.parametrize(
    ("source", "options", "why"),
    [
        ("pipe.csv", {}, "this is a named pipe"),
        ("latin.csv", {}, "not UTF-8 text"),
        ("twice.csv", {}, "columns 2 and 3 have the same name"),
        ("rows.csv", {}, "nothing here is a sample"),
        ("good.csv", {"label": "town"}, "there is no column 'town'"),
        ("good.csv", {"columns": {"up": "lat"}}, "'up' is no column of ours"),
        ("good.csv", {"views": ("north",)}, "the table has no view 'north'"),
        ("good.csv", {"images": Path("nowhere")}, "this is no folder"),
        ("good.csv", {"label": "gone.geojson"}, "there is no such file"),
        ("good.csv", {"kind": "folder"}, "this is a file, where a folder"),
        (".", {"kind": "osv5m"}, r"neither train\.csv nor test\.csv"),
        (".", {"kind": "parquet"}, "there is no Parquet file"),
        (".", {"kind": "csv"}, "tables lie here, where one is wanted"),
        (".", {"label": "town"}, "a folder of pictures has no column"),
        (".", {"pattern": "{id}_{view}.png"}, "none of 1 pictures is of the pattern"),
    ],
)
def test_every_fault_is_one_line_and_nothing_is_left_behind(
    tmp_path: Path, source: str, options: Any, why: str
) -> None:
    root = tmp_path / "src"
    paint(root / "0.jpg", 0)
    os.mkfifo(root / "pipe.csv")
    (root / "latin.csv").write_bytes("image,lat,lon,class\n0.jpg,1,2,Zürich\n".encode("latin-1"))
    (root / "twice.csv").write_text("image,lat,lat,lon\n0.jpg,1,2,3\n")
    (root / "rows.csv").write_text("image,lat,lon\n")
    (root / "good.csv").write_text("image,lat,lon\n0.jpg,1,2\n")
    with pytest.raises(GeoError, match=why) as refused:
        adopt(Config(), root / source, tmp_path / "out", **options)
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


def test_the_command_says_what_it_made_and_what_comes_next(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(classes / "Lima" / "nowhere.jpg", 90)
    ran = command(capsys, "data", "adopt", classes, "--out", tmp_path / "made")
    assert ran.code == 0, ran.err
    assert "12 train, 0 test" in ran.out
    assert "1 no-coordinates: no coordinates in its EXIF (Lima/nowhere.jpg)" in ran.out
    assert ran.err.splitlines()[-1] == f"next: cd {tmp_path}/made && geo data check --split train"
    as_json = command(capsys, "--json", "data", "adopt", classes, "--out", tmp_path / "json").json
    assert (as_json["samples"], as_json["left_out"][0]["reason"]) == (12, "no-coordinates")
    again = command(capsys, "data", "adopt", classes, "--out", tmp_path / "made")
    assert (again.code, len(again.err.splitlines())) == (1, 2)


def test_stages_work_on_what_was_adopted(
    country: Country, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the settings that lie there, in its directory."""
    rows = pd.read_csv(country.train_csv).rename(columns={"state": "province"}).drop(columns="state_idx")
    rows.to_csv(tmp_path / "theirs.csv", index=False)
    made = command(
        capsys,
        *("data", "adopt", tmp_path / "theirs.csv", "--images", country.images(), "--out", tmp_path / "made"),
        *("--label", "province", "--views", "south,north", "--test-share", "0.2"),
    )
    assert made.code == 0, made.err
    monkeypatch.chdir(tmp_path / "made")
    assert command(capsys, "data", "check").code == 0
    backbone = ("--backbone", country.backbone)
    for words in (("extract", "--split", "all"), ("fit-heads", "--name", "first")):
        ran = command(
            capsys, "--set", "training.preset=pigeon", "--set", "training.epochs=2", *words, *backbone
        )
        assert ran.code == 0, ran.err
    submitted = command(capsys, "submit", "first")
    assert submitted.code == 0, submitted.err
