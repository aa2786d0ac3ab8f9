"""The notebook and the Python of the docs do what they say, from the first cell to the last."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

import geo_embed

if TYPE_CHECKING:
    from small import Country

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
HINT = "isn't installed; `pip install --group dev` brings it"


def cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(cell: dict[str, Any]) -> str:
    """What a cell shows, as text and as pages have it."""
    shown = [str(output.get("text", "")) + json.dumps(output.get("data", {})) for output in cell["outputs"]]
    return "\n".join(shown)


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert {"outputs": [], "execution_count": None}.items() <= cells(notebook)[0].items()
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(notebook))
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}


@pytest.mark.slow
def test_the_notebook_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason=f"nbformat {HINT}")
    nbclient = pytest.importorskip("nbclient", reason=f"nbclient {HINT}")
    pytest.importorskip("ipykernel", reason=f"ipykernel {HINT}")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    notebook = nbformat.read(NOTEBOOK, 4)
    # Fewer places, which is all that differs.
    painting = cells(notebook)[0]
    assert painting["source"].count("locations=200") == 1
    painting["source"] = painting["source"].replace("locations=200", "locations=80")
    folder = tmp_path / "folder"
    folder.mkdir()
    # Raises where a cell does.
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()

    shown = {cell["source"].splitlines()[-1]: outputs(cell) for cell in cells(notebook)}
    everything = "\n".join(shown.values())
    assert not re.search(r"[Ww]arning: ", everything)
    assert everything.count("image/png") == 6
    config = geo_embed.get_config(**geo_embed.demo_settings(folder / "quickstart"))
    first, arrays = (geo_embed.load_run(name, config=config) for name in ("first", "arrays"))
    assert f">{first.metrics['score']:.4f} (" in shown["run"]
    # "Run the cell again: nothing is computed twice."
    again = geo_embed.extract(config, "train")
    assert (again.computed, again.reused) == (0, again.samples * again.views)
    submission = config.paths.submissions_dir / "first.csv"
    assert geo_embed.validate(config, submission).valid
    assert "first.csv is valid" in everything
    # "The heads are the same as above."
    tensors, others = load_file(first.heads_path), load_file(arrays.heads_path)
    assert tensors.keys() == others.keys()
    assert all((tensors[name] == others[name]).all() for name in tensors)


def test_the_python_of_the_docs_runs_as_it_is_written(country: Country, tmp_path: Path) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in country.settings(tmp_path).items()]
    Path("geo.toml").write_text("\n".join([*lines, "training.epochs = 1"]), encoding="utf-8")
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(blocks) == 8
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert isinstance(names["run"].predictions(), pd.DataFrame)
    np.testing.assert_allclose(names["places_again"], [[40.7, -74.0], [34.1, -118.2]], rtol=1e-6)
    heads = [load_file(names[name].heads_path) for name in ("run", "mine")]
    assert all(np.array_equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_verbs_are_listed_and_nothing_heavy_is_imported_before_one_is_used() -> None:
    code = "import json, sys, geo_embed; print(json.dumps([dir(geo_embed), sorted(sys.modules)]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed, imported = json.loads(done.stdout)
    assert {
        "extract",
        "fit_heads",
        "load_run",
        "cache_import",
        "cache_export",
        "denormalize",
        "submit",
    } <= set(listed)
    assert set(geo_embed.__all__) <= set(listed)
    assert {"torch", "pandas", "numpy", "pydantic", "transformers", "zarr"}.isdisjoint(imported)


def test_an_error_in_a_notebook_is_two_lines_and_no_traceback(tmp_path: Path) -> None:
    pytest.importorskip("IPython", reason=f"IPython {HINT}")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "IPython",
            "--colors=NoColor",
            "-c",
            "import geo_embed; geo_embed.load_run('first')",
        ],
        env=os.environ | {"IPYTHONDIR": str(tmp_path / "ipython")},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert lines == ["error: there is no run 'first' (runs)", "hint: train one with: geo fit-heads"]
