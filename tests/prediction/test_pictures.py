"""Pictures are given in any form, one place or many, and answered as their files are; what is no picture is refused by its place."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_embed.answers import Predictions
from geo_embed.config import Config
from geo_embed.data.samples import load_samples
from geo_embed.errors import GeoError
from geo_embed.prediction.pictures import arrange, predict_arrays, predict_images
from geo_embed.prediction.predict import predict_split
from geo_embed.runs.backbone import load_backbone_of
from geo_embed.runs.run import Run

if TYPE_CHECKING:
    pass

VIEWS = ("north", "east", "south", "west")


@pytest.fixture
def files(config: Config) -> list[list[Path]]:
    """The pictures of the first test samples, as PNG: whoever decodes it makes the same pixels of it."""
    samples = load_samples(config, "test")
    folder = Path("png")
    folder.mkdir()
    places = []
    for names in samples.images[:3]:
        places.append([folder / f"{Path(name).stem}.png" for name in names])
        for name, file in zip(names, places[-1], strict=True):
            Image.open(samples.image_root / name).save(file)
    return places


def same(first: Predictions, second: Predictions) -> None:
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=1e-6)
    np.testing.assert_allclose(first.latitude, second.latitude, atol=1e-4)
    np.testing.assert_allclose(first.longitude, second.longitude, atol=1e-4)


FORMS: dict[str, Callable[[Path], Any]] = {
    "text": str,
    "bytes": Path.read_bytes,
    "memory": lambda file: memoryview(file.read_bytes()),
    "pil": Image.open,
    "pixels": lambda file: np.asarray(Image.open(file)),
    "view of pixels": lambda file: np.asarray(Image.open(file))[:, ::-1][:, ::-1],
    "palette": lambda file: Image.open(file).convert("RGBA"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_in_any_form_is_answered_as_its_file_is(
    config: Config, run: Run, files: list[list[Path]], form: str
) -> None:
    same(
        predict_images(config, run, [[FORMS[form](file) for file in place] for place in files]),
        predict_images(config, run, files),
    )


def test_many_places_are_answered_as_each_alone_and_as_from_the_store(
    config: Config, run: Run, files: list[list[Path]]
) -> None:
    few = config.model_copy(update={"inference": config.inference.model_copy(update={"batch_size": 8})})
    many = predict_images(few, run, files)
    assert many.sample_id.tolist() == ["0", "1", "2"]
    for place in range(3):
        same(predict_images(config, run, files[place]), many.take(slice(place, place + 1)))
    cached, _ = predict_split(config, run, "test")
    np.testing.assert_allclose(many.probabilities, cached.probabilities[:3], atol=1e-3)


def test_a_place_by_the_names_of_its_views_is_that_in_their_order(
    config: Config, run: Run, files: list[list[Path]]
) -> None:
    named = dict(zip(VIEWS, files[0], strict=True))
    same(
        predict_images(config, run, [dict(reversed(named.items())), {"south": files[0][2]}]),
        predict_images(config, run, [files[0], [None, None, files[0][2], None]]),
    )


def test_a_view_that_is_missing_is_left_out_and_a_place_without_any_gets_the_prior(
    config: Config, run: Run, files: list[list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    others = files[0][1:]
    answered = predict_images(config, run, [files[0], [None, *others], [None] * 4])
    assert np.abs(answered.probabilities[0] - answered.probabilities[1]).max() > 1e-4
    np.testing.assert_allclose(answered.probabilities[2], run.prior.probabilities, rtol=1e-6)
    assert "1 of 3 places has no picture" in capsys.readouterr().err
    tower = load_backbone_of(run, pick())
    embedded = embed(tower, [FORMS["pixels"](file) for file in files[0]])
    present = np.array([[True] * 4, [False, True, True, True], [False] * 4])
    again = predict_arrays(config, run, np.repeat(embedded[None], 3, axis=0), present)
    np.testing.assert_allclose(again.probabilities, answered.probabilities, atol=1e-3)


def pick() -> Any:
    import torch

    return torch.device("cpu")


def embed(tower: Any, pixels: list[np.ndarray]) -> np.ndarray:
    import torch

    from geo_embed.backbones import backbone as backbones
    from geo_embed.data import images

    resized = np.stack([images.resize(picture, tower.preprocessing) for picture in pixels])
    with torch.inference_mode():
        normal = images.normalise(torch.from_numpy(resized), tower.preprocessing, tower.dtype)
        return backbones.embed(tower, normal).float().numpy()


def test_a_picture_that_pil_holds_is_turned_upright_and_laid_over_white_as_its_file_is(
    config: Config, run: Run, files: list[list[Path]]
) -> None:
    picture = Image.open(files[0][0]).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    saved = io.BytesIO()
    picture.save(saved, "PNG", exif=exif)
    by_file = predict_images(config, run, [saved.getvalue(), *files[0][1:]])
    same(predict_images(config, run, [Image.open(saved), *files[0][1:]]), by_file)
    flat = predict_images(config, run, [picture.convert("RGB"), *files[0][1:]])
    assert np.abs(flat.probabilities - by_file.probabilities).max() > 1e-4


def test_places_are_arranged_as_they_are_meant() -> None:
    a, b = b"a", b"b"
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    assert arrange([a, b], ("x", "y")) == [[a, b]]
    assert arrange([[a, None], (b, a)], ("x", "y")) == [[a, None], [b, a]]
    assert arrange(iter([a, b]), ("x", "y")) == [[a, b]]
    assert arrange(({"y": n} for n in (a, b)), ("x", "y")) == [[None, a], [None, b]]
    # A table of paths, and pixels of all views in one array.
    assert arrange(pd.DataFrame({"north": ["1", "2"], "east": ["3", "4"]}), ("x", "y")) == [
        ["1", "3"],
        ["2", "4"],
    ]
    assert len(arrange(np.stack([pixels, pixels]), ("x", "y"))) == 1
    assert len(arrange(np.zeros((5, 2, 4, 4, 3), dtype=np.uint8), ("x", "y"))) == 5
    # Where there is one view, nothing else can be meant.
    assert arrange(a, ("x",)) == [[a]]
    assert arrange([a, None, b], ("x",)) == [[a], [None], [b]]
    assert arrange([[a], [b]], ("x",)) == [[a], [b]]
    assert arrange(pd.Series(["1", "2"]), ("x",)) == [["1"], ["2"]]


@pytest.mark.parametrize(
    ("pictures", "what", "where"),
    [
        ([], "0 pictures, where the run looks at 2 views: x, y", ""),
        ("a.jpg", "1 picture, where", ""),
        ([b"a", b"b", b"c"], "3 pictures, where", ""),
        ([[b"a", b"b"], [b"a"]], "1 picture, where", "place 1"),
        ([[b"a", b"b"], None], "1 picture, where", "place 1"),
        ([[b"a", b"b"], b"c"], "1 picture, where", "place 1"),
        ({"z": b"a"}, "there is no view 'z'", ""),
        ([{"x": b"a"}, {"X": b"a"}], "there is no view 'X'", "place 1"),
        (7, "a int is no picture", ""),
        ([[b"a", b"b"], 7], "a int is no picture", "place 1"),
    ],
)
def test_places_that_do_not_fit_the_views_are_refused(pictures: Any, what: str, where: str) -> None:
    with pytest.raises(GeoError) as caught:
        arrange(pictures, ("x", "y"))
    assert what in caught.value.what
    assert caught.value.where == where


def closed(file: Path) -> Image.Image:
    picture = Image.open(file)
    picture.close()
    return picture


def cut_off(file: Path) -> Image.Image:
    return Image.open(io.BytesIO(file.read_bytes()[:300]))


@pytest.mark.parametrize(
    ("form", "what"),
    [
        (lambda file: file.with_name("none.png"), "can't read the picture: No such file"),
        (lambda file: b"", "can't read the picture"),
        (closed, "can't read the picture"),
        (cut_off, "can't read the picture"),
        (lambda file: Image.new("F", (4, 4)), "without a known white"),
        (lambda file: Image.new("RGB", (0, 0)), "can't read the picture"),
        (lambda file: np.zeros((4, 4, 3)), "an array of float64 and shape (4, 4, 3) is no picture"),
        (lambda file: np.zeros((4, 4), dtype=np.uint8), "an array of uint8 and shape (4, 4) is no picture"),
        (lambda file: np.zeros((0, 4, 3), dtype=np.uint8), "is no picture"),
        (lambda file: float("nan"), "a float is no picture"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_place_and_view(
    config: Config, run: Run, files: list[list[Path]], form: Callable[[Path], Any], what: str
) -> None:
    north, east, south, west = files[1]
    bad = form(east)
    with pytest.raises(GeoError) as caught:
        predict_images(config, run, [files[0], [north, bad, south, west]])
    assert what in caught.value.what
    assert caught.value.where == (str(bad) if isinstance(bad, Path) else "place 1, view east")


@pytest.mark.parametrize(
    ("shape", "what"),
    [((2, 3, 768), "3 × 768 numbers"), ((2, 4, 700), "4 × 700 numbers"), ((4, 768), "1 × 768 numbers")],
)
def test_embeddings_of_another_shape_are_refused(
    config: Config, run: Run, shape: tuple[int, ...], what: str
) -> None:
    with pytest.raises(GeoError, match=f"{what} a place, where first was fitted on 4 × 768"):
        predict_arrays(config, run, np.ones(shape))
