"""The rules of the house, read from the code: who may import whom, and which names."""

import ast
import runpy
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import geo_embed

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "geo_embed"


def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    names = {path: path.relative_to(ROOT).with_suffix("").parts for path in sorted(PACKAGE.rglob("*.py"))}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in names.items()}


def private_names_of_others(module: str, source: str, known: set[str]) -> Iterator[str]:
    """Names with a leading underscore that `source` takes from another module: imported, or reached through it."""
    aliases = {}
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in known:
                    aliases[alias.asname or alias.name] = full
                elif is_private(alias.name) and node.module in known and node.module != module:
                    yield f"{module}:{node.lineno} imports {full}"
        elif isinstance(node, ast.Import):
            aliases.update({alias.asname: alias.name for alias in node.names if alias.asname})
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            owner = aliases.get(owner, owner)
            if owner in known and owner != module:
                yield f"{module}:{node.lineno} reads {owner}.{node.attr}"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_private_name_is_taken_from_another_module() -> None:
    known = modules()
    taken = [
        line
        for module, path in known.items()
        for line in private_names_of_others(module, path.read_text(), set(known))
    ]
    assert taken == []


@pytest.mark.parametrize(
    "source",
    [
        "from geo_embed.heads.layers import _Trunk",
        "def f():\n    from geo_embed.heads.layers import _Trunk as Trunk",
        "from geo_embed.heads import layers\nlayers._Trunk",
        "import geo_embed.heads.layers as trunk\ntrunk._Trunk",
        "import geo_embed.heads.layers\ngeo_embed.heads.layers._Trunk",
    ],
)
def test_every_way_to_a_private_name_is_seen(source: str) -> None:
    known = {"geo_embed.heads", "geo_embed.heads.layers", "geo_embed.data.check"}
    assert len(list(private_names_of_others("geo_embed.data.check", source, known))) == 1


@pytest.mark.parametrize(
    ("file", "line", "refusal"),
    [
        (
            "data/check.py",
            "from geo_embed.heads import layers",
            "geo_embed.data is not allowed to import geo_embed.heads",
        ),
        ("errors.py", "import geo_embed.cli", "geo_embed.errors is not allowed to import geo_embed.cli"),
        (
            "prediction/predict.py",
            "if TYPE_CHECKING:\n    from geo_embed.fitting import fit",
            "geo_embed.prediction is not allowed to import geo_embed.fitting",
        ),
        ("nowhere.py", "", "not listed as layers"),
    ],
)
def test_an_import_that_points_up_is_refused(tmp_path: Path, file: str, line: str, refusal: str) -> None:
    pytest.importorskip("importlinter")
    shutil.copytree(PACKAGE, tmp_path / "geo_embed", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "geo_embed" / file).open("a") as source:
        source.write(f"\n{line}\n")

    linter = Path(sys.executable).parent / "lint-imports"
    result = subprocess.run(
        [linter, "--no-cache"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )

    assert result.returncode == 1, result.stdout
    assert refusal in result.stdout


@pytest.fixture(scope="module")
def drawing() -> dict[str, Any]:
    """The names of tools/draw_house.py."""
    return runpy.run_path(str(ROOT / "tools" / "draw_house.py"))


def test_the_house_is_shown_as_the_code_is(drawing: dict[str, Any]) -> None:
    for page, text in drawing["pages"](ROOT).items():
        assert page.read_text() == text, f"{page.name}: the wings have changed; run `make house`"


def test_every_import_is_an_arrow_unless_others_imply_it(tmp_path: Path, drawing: dict[str, Any]) -> None:
    files = {
        "pyproject.toml": """
            [[tool.importlinter.contracts]]
            type = "layers"
            layers = ["show", "train | predict", "cache", "errors : files"]
            """,
        "small/errors.py": "",
        "small/files.py": "from small import errors",
        "small/cache/__init__.py": "'''The store: `read`.'''",
        "small/cache/store.py": "import small.files\nif False:\n    import small.show.app",
        "small/train/__init__.py": "'''Stage 2: `fit`.'''",
        "small/train/fit.py": "from small.cache.store import read\nfrom small.errors import GeoError",
        "small/predict/__init__.py": "'''Answers.'''\ndef predict():\n    from small import cache",
        "small/show/__init__.py": "'''The commands: `main`.'''",
        "small/show/app.py": "from small import cache, train",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))

    assert drawing["draw"](tmp_path / "small", tmp_path / "pyproject.toml") == textwrap.dedent("""\
        ```mermaid
        flowchart TD
            show["<b>show/</b><br/>The commands"]
            predict["<b>predict/</b><br/>Answers"]
            train["<b>train/</b><br/>Stage 2"]
            cache["<b>cache/</b><br/>The store"]
            ground["<b>ground floor</b><br/>errors · files"]
            show --> train
            predict --> cache
            train --> cache
            cache --> ground
            cache -.-> show
        ```
        """)


@pytest.mark.parametrize("verb", geo_embed.__all__)
def test_every_verb_of_the_package_is_where_it_is_said_to_be(verb: str) -> None:
    assert getattr(geo_embed, verb).__name__ == verb
