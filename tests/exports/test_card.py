"""A model card says what its run is worth, what its backbone's licence allows, and reads as the hub's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import ModelCard
from worlds import made_run, make_world

from geo_embed.config import Config
from geo_embed.exports.export import export
from geo_embed.exports.origin import Origin, find_origins, warn_of_licenses
from geo_embed.runs.backbone import inputs_of
from geo_embed.runs.run import Run, load_run

if TYPE_CHECKING:
    from conftest import Country


def card_of(directory: Path) -> tuple[ModelCard, str]:
    text = (directory / "README.md").read_text(encoding="utf-8")
    return ModelCard(text), text


def test_licence_and_base_model_are_those_of_the_backbones_own_card(
    run: Run, config: Config, country: Country, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(country.backbone, tmp_path / "model")
    front = "---\nlicense: other\nlicense_name: house-licence\nlicense_link: https://example.org/l\nbase_model: maker/tower\n---\n"
    (tmp_path / "model" / "README.md").write_text(f"{front}# Tower\n")
    done = export(config, run, tmp_path / "e", backbone=str(tmp_path / "model"))
    assert (done.license, done.base_model) == ("other", "maker/tower")
    card, text = card_of(tmp_path / "e")
    assert card.data.to_dict()["license_name"] == "house-licence"
    assert (card.data.license, card.data.base_model) == ("other", "maker/tower")
    assert "house-licence, as the backbone's, maker/tower" in text
    assert "licence" not in capsys.readouterr().err


def test_streetclip_is_not_for_commerce_and_an_unknown_licence_is_said_to_be(
    run: Run, config: Config, country: Country, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(country.backbone, tmp_path / "StreetCLIP")
    done = export(config, run, tmp_path / "e", backbone=str(tmp_path / "StreetCLIP"))
    assert (done.license, done.base_model) == ("cc-by-nc-4.0", "geolocal/StreetCLIP")
    warned = " ".join(capsys.readouterr().err.split())
    assert "licensed cc-by-nc-4.0: not for commercial use" in warned
    card, text = card_of(tmp_path / "e")
    assert (card.data.license, card.data.base_model) == ("cc-by-nc-4.0", "geolocal/StreetCLIP")
    assert "**Not for commercial use.**" in text

    done = export(config, run, tmp_path / "u")
    assert done.license == "unknown"
    assert "the licence of the backbone, backbone, is unknown" in " ".join(capsys.readouterr().err.split())
    card, text = card_of(tmp_path / "u")
    assert card.data.license == "unknown"
    assert card.data.base_model is None


def with_card(country: Country, to: Path, *lines: str) -> str:
    shutil.copytree(country.backbone, to)
    (to / "README.md").write_text("\n".join(("---", *lines, "---", "# Tower", "")), encoding="utf-8")
    return str(to)


def test_every_licence_and_its_own_words_go_along(
    run: Run, config: Config, country: Country, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_card(
        country,
        tmp_path / "m",
        "license: [apache-2.0, cc-by-nc-4.0]",
        "license_link: LICENSE",
        "base_model: [maker/tower, b/c]",
    )
    for name in ("LICENSE", "NOTICE.txt", "train.log"):
        (tmp_path / "m" / name).write_text(f"words of {name}")
    done = export(config, run, tmp_path / "e", backbone=model)
    assert {name for name in done.files if name.startswith("backbone/") and "json" not in name} == {
        "backbone/model.safetensors",
        "backbone/LICENSE",
        "backbone/NOTICE.txt",
    }
    assert "not for commercial use" in " ".join(capsys.readouterr().err.split())
    card, text = card_of(tmp_path / "e")
    assert card.data.license == ["apache-2.0", "cc-by-nc-4.0"]
    assert card.data.base_model == "maker/tower"
    assert "<https://huggingface.co/maker/tower/blob/main/LICENSE>" in text
    assert (tmp_path / "e" / "backbone" / "LICENSE").read_text() == "words of LICENSE"


@pytest.mark.parametrize(
    ("lines", "license", "name", "warned"),
    [
        (
            ("license: other", "license_name: Flux Non-Commercial License"),
            "other",
            "flux-non-commercial-license",
            True,
        ),
        (
            ("license: fair-noncommercial-research-license",),
            "fair-noncommercial-research-license",
            None,
            True,
        ),
        (("license: 'My own\t<b>licence</b>'",), "other", "my-own-b-licence-b", False),
        (("license: mit", "base_model: ../local/tower"), "mit", None, False),
        (
            ("license: mit", 'base_model: "a/b\\n- evil: yes"', "license_link: 'javascript:x'"),
            "mit",
            None,
            False,
        ),
    ],
)
def test_what_a_card_says_is_taken_as_the_hub_takes_it(
    run: Run, country: Country, tmp_path: Path, lines: tuple[str, ...], license: str, name: str, warned: bool
) -> None:
    (origin,) = find_origins(run, inputs_of(run), [with_card(country, tmp_path / "m", *lines)])
    assert (origin.license, origin.license_name) == (license, name)
    assert origin.forbids_commerce == warned
    assert (origin.on_hub, origin.base_model, origin.license_link) == (False, "m", None)


def test_names_are_text_and_nothing_that_a_card_would_obey(tmp_path: Path) -> None:
    """Of views, classes, the directory, and the backbone's card."""
    views = ('a"]); evil(["', "<img src=x>")
    config = make_world(tmp_path / "w", ("Zürich 東京", "$x$ ~~y~~ &amp;"), views=views, samples=40)
    run = made_run(config, "first")
    out = tmp_path / "x: [1] <script>\n---\nlicense: mit"
    export(config, run, out, heads_only=True)
    card, text = card_of(out)
    assert card.data.license == "unknown"
    assert card.data.model_name == out.name
    body = text.split("\n---\n", 1)[1]
    assert "<img" not in body.replace("\\<", "")
    assert "<script" not in body.replace("\\<", "")
    assert "Zürich 東京" in body
    assert r"\$x\$ \~\~y\~\~ \&amp;" in body


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/home/x/.cache/huggingface/hub/models--maker--tower-L/snapshots/0a1b", "maker/tower-L"),
        ("/models/streetclip", "geolocal/StreetCLIP"),
        ("geolocal/StreetCLIP", "geolocal/StreetCLIP"),
        ("models/relative", "backbone"),
        ("/models/other", "backbone"),
    ],
)
def test_a_directory_tells_its_model_where_it_can(run: Run, path: str, known: str) -> None:
    assert [origin.base_model for origin in find_origins(run, inputs_of(run), [path])] == [known]


def test_a_card_that_is_none_is_passed_over(run: Run, country: Country, tmp_path: Path) -> None:
    shutil.copytree(country.backbone, tmp_path / "model")
    for text in (
        "no front matter",
        "---\nlicense: [\n---\n",
        "---\n- a\n- list\n---\n",
        "---\nlicense:\n---\n",
    ):
        (tmp_path / "model" / "README.md").write_text(text)
        assert find_origins(run, inputs_of(run), [str(tmp_path / "model")])[0].license == "unknown"


def test_only_what_forbids_commerce_and_what_is_unknown_is_warned_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for license in ("mit", "apache-2.0", "cc-by-4.0"):
        warn_of_licenses([Origin("a/b", True, license)])
    assert capsys.readouterr().err == ""


def test_random_and_spatial_scores_stand_side_by_side_with_their_intervals(tmp_path: Path) -> None:
    config = make_world(tmp_path / "w", ("a|b", "[c](x)", "<d>"), samples=120, step=3.0)
    random = made_run(config, "random")
    training = config.training.model_copy(update={"validation": "spatial", "group_km": 20.0})
    spatial = made_run(config.model_copy(update={"training": training}), "spatial")
    other = config.training.model_copy(update={"epochs": 7})
    made_run(config.model_copy(update={"training": other}), "other")
    export(config, load_run(config.paths.runs_dir, "random"), tmp_path / "e", heads_only=True)
    card, text = card_of(tmp_path / "e")
    assert "| | random split | spatially grouped, 20 km |" in text
    scores = [random.read_metrics(), spatial.read_metrics()]
    cells = [
        f"{s['score']:.4f} ({s['score_interval'][0]:.4f} to {s['score_interval'][1]:.4f})" for s in scores
    ]
    assert f"| score | {' | '.join(cells)} |" in text
    assert "Only this split is known" not in text
    results = card.data.eval_results
    assert {result.metric_type: result.metric_value for result in results}["score"] == round(
        scores[0]["score"], 4
    )
    assert r"| a\|b | 2 |" in text
    assert r"| \[c\](x) | 5 |" in text


def test_the_finest_granularity_is_where_half_of_the_places_are_found(tmp_path: Path) -> None:
    config = make_world(tmp_path / "w", ("a", "b"), samples=80)
    run = made_run(config, "first")
    path = run.path / "metrics.json"
    metrics = json.loads(path.read_text())
    marks = {"1": 0.01, "25": 0.2, "100": 0.49, "200": 0.5, "1000": 0.9}
    path.write_text(json.dumps(metrics | {"val": metrics["val"] | {"within_km": marks, "median_km": 180.0}}))
    export(config, run, tmp_path / "e", heads_only=True)
    _, text = card_of(tmp_path / "e")
    assert "80 places of 2 classes; 30% of them were held out: drawn at random, seed 0." in text
    assert "Finest granularity: 200 km." in text
    assert "(50%); half of them are off by more than 180 km. Within 1 km it finds 1.0%." in text
    assert "private pictures" in text
    assert "Surveillance" in text


def test_the_card_of_a_run_that_held_nothing_out_says_that_nothing_is_known(tmp_path: Path) -> None:
    config = make_world(tmp_path / "w", ("a", "b"), samples=40, training__val_split=0.001)
    run = made_run(config, "all")
    export(config, run, tmp_path / "e", heads_only=True)
    card, text = card_of(tmp_path / "e")
    assert "how good it is isn't known" in text
    assert "40 places of 2 classes; none were held out." in text
    assert "calibration error above" not in text
    assert card.data.eval_results is None
