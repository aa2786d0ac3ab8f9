"""What pyproject.toml declares is what the package imports, no less and no more; and `make lowest` refuses bounds that nobody tried."""

import ast
import runpy
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOWEST = runpy.run_path(str(ROOT / "tools" / "lowest.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Modules of what the tests' own environment may lack.
OPTIONAL_MODULES = {"timm": "timm", "peft": "peft", "wandb": "wandb", "trackio": "trackio", "ray": "ray"}


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of the modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
            # What torch has none of, and imports from elsewhere.
            names |= {"tensorboard"} & {node.module.removeprefix("torch.utils.")}
    return names


def packages(modules: set[str]) -> set[str]:
    """What has to be installed for modules to be there, by the names that pip knows."""
    distributions = packages_distributions()
    return {
        OPTIONAL_MODULES.get(module, distributions.get(module, [module])[0]).lower().replace("_", "-")
        for module in modules - sys.stdlib_module_names - {"geo_embed"}
    }


def test_every_import_is_of_a_declared_dependency_and_every_dependency_is_imported() -> None:
    files = sorted((ROOT / "geo_embed").rglob("*.py"))
    modules = set().union(*(imported(ast.parse(path.read_text(encoding="utf-8"))) for path in files))
    assert packages(modules) == set(LOWEST["bounds"](PROJECT))


def test_imports_are_found_wherever_they_stand() -> None:
    code = "import a.b\nfrom c.d import e\ndef f():\n    if x:\n        import g\nfrom . import h\n"
    assert imported(ast.parse(code)) == {"a", "c", "g"}


def test_every_bound_is_also_in_what_ci_installs() -> None:
    """And none is above it, or CI would install nothing."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    installed = dict(line.split("==") for line in lines if "==" in line)
    installed = {name.lower().replace("_", "-"): version for name, version in installed.items()}
    for name, bound in LOWEST["bounds"](PROJECT).items():
        assert [int(n) for n in installed[name].split(".")] >= [int(n) for n in bound.split(".")], name


@pytest.mark.parametrize(
    ("declared", "resolved", "untrue"),
    [
        ({"zarr": "3.1"}, "zarr==3.1.0\nnumpy==2.0.0\n", 0),
        ({"zarr": "3.1"}, "zarr==3.1.3\n", 1),
        ({"zarr": "3.1", "numpy": "2.0"}, "numpy==2.0\n", 1),
        ({"zarr": ""}, "zarr==3.1.3\n", 1),
    ],
    ids=["tried", "lifted", "not installed", "no bound"],
)
def test_a_bound_that_is_not_what_gets_installed_is_said(
    declared: dict[str, str], resolved: str, untrue: int
) -> None:
    assert len(LOWEST["lifted"](declared, resolved)) == untrue
