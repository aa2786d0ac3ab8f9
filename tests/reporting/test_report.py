"""`geo report`: one file, whole or not there, whatever the run is; and its page as text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import Country
from small import command, files
from worlds import made_run, make_world

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.reporting.html import MODULES, STYLES, to_html, to_json
from geo_embed.reporting.report import report
from geo_embed.runs.run import Run

PAGE = Path(__file__).parents[2] / "geo_embed" / "reporting" / "page"


class Parsed(HTMLParser):
    """A page's elements with their attributes, and the text of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style") and data.strip():
            self.raw.append(data)


def data_of(path: Path) -> dict[str, Any]:
    match = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL
    )
    assert match is not None
    value: dict[str, Any] = json.loads(match[1])
    return value


def test_the_command_writes_one_file_and_prints_its_path(
    run: Run, country: Country, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(run.path)
    ran = command(capsys, *country.options(tmp_path), "--json", "report")
    assert ran.code == 0, ran.err
    path = Path(ran.json["report"])
    assert path == Path("reports/first.html")
    assert [row["name"] for row in data_of(path)["runs"]] == ["first"]
    assert files(run.path) == before
    assert [file.name for file in path.parent.iterdir()] == ["first.html"]
    # The commands that it suggests can be pasted: they point at the same data.
    for row in data_of(path)["runs"][0]["next"]:
        assert f"--set paths.data_root={country.data}" in row["command"]


def test_two_runs_have_one_report_with_both_and_a_comparison(
    run: Run, country: Country, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.path, run.path.parent / "second")
    ran = command(capsys, *country.options(tmp_path), "report", "first", "second", "--out", "both.html")
    assert ran.code == 0, ran.err
    assert "both.html" in ran.out
    findings = data_of(Path("both.html"))
    assert [row["name"] for row in findings["runs"]] == ["first", "second"]
    assert [(row["a"], row["b"]) for row in findings["comparisons"]] == [("first", "second")]
    # The same run twice differs by nothing.
    assert findings["comparisons"][0]["rows"][0]["difference"] == 0


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["first", "first"], "this run is given twice"),
        (["frist"], "did you mean first?"),
        (["first", "--out", "."], "directory"),
        (["first"] * 7, "too many to read"),
    ],
)
def test_what_cannot_be_written_is_one_clear_line(
    run: Run,
    country: Country,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    what: str,
) -> None:
    ran = command(capsys, *country.options(tmp_path), "report", *arguments)
    assert (ran.code, ran.out) == (1, "")
    assert what in ran.err
    assert "Traceback" not in ran.err
    assert not list(tmp_path.glob("**/*.html"))


def test_a_damaged_run_leaves_the_old_report_as_it_was(config: Config, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    out.write_text("the old one")
    run.predictions_path("val").write_bytes(b"half a tab")
    with pytest.raises(GeoError, match="not a readable prediction table"):
        report(config, ["first"], out)
    assert out.read_text() == "the old one"
    assert {path.name for path in tmp_path.iterdir()} <= {"out.html", "runs"}


@pytest.mark.parametrize(
    "lost", ["history.parquet", "heads.safetensors", "split.parquet", "haversine_matrix.npy"]
)
def test_a_lost_file_takes_its_figures_away_and_not_the_report(
    config: Config, run: Run, tmp_path: Path, lost: str
) -> None:
    (run.path / lost).unlink()
    (run_findings,) = data_of(report(config, ["first"], tmp_path / "out.html"))["runs"]
    assert run_findings["headline"][0]["value"] > 0
    assert run_findings["errors"]["curve"]


def test_the_page_asks_no_server_and_its_policy_names_what_it_holds(tmp_path: Path) -> None:
    config = make_world(tmp_path / "w", ["a", "b"], samples=20)
    made_run(config, "a")
    text = report(config, ["a"]).read_text()
    page = Parsed(text)
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "action", "onload", "onerror", "style"} & attributes.keys(), (
            tag,
            attributes,
        )
        assert tag not in ("link", "iframe", "object", "embed", "form", "base")
        assert attributes.get("href", "#").startswith("#")
    (policy,) = (a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    style, data, library, script = page.raw
    for part in (style, library, script):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert json.loads(data)["runs"]


@pytest.mark.parametrize("name", ["</script>", "<!--", "<script>", "\u2028", "&amp;", "]]>", "\ud800", '"'])
def test_no_text_ends_the_data_and_all_of_it_comes_back(name: str) -> None:
    text = to_json({"name": name})
    assert json.loads(text) == {"name": name}
    assert not set(text) & set("<>&\u2028")
    assert Parsed(f"<script>{text}</script><p>").elements == [("script", {}), ("p", {})]


def test_a_title_is_escaped_and_dollars_stay() -> None:
    page = to_html("<b>$style</b>", {"runs": []})
    assert "<title>Report: &lt;b&gt;$style&lt;/b&gt;</title>" in page


def test_every_module_and_style_of_the_page_is_in_it() -> None:
    assert {path.stem for path in PAGE.glob("*.js")} == set(MODULES)
    # Pages without scripts have the others.
    assert {path.stem for path in PAGE.glob("*.css")} == {*STYLES, "data", "comparison"}


def test_modules_import_what_stands_before_them_and_no_name_is_made_twice() -> None:
    names: dict[str, str] = {}
    for k, module in enumerate(MODULES):
        text = (PAGE / f"{module}.js").read_text()
        for imported, source in re.findall(r"^import \{([^}]*)\} from \"\./(\w+)\.js\";", text, re.MULTILINE):
            assert source in MODULES[:k], f"{module} imports {source}"
            exported = (PAGE / f"{source}.js").read_text()
            for name in (part.strip() for part in imported.split(",") if part.strip()):
                assert re.search(rf"^export [^=]*\b{name}\b", exported, re.MULTILINE), f"{module}: {name}"
                assert len(re.findall(rf"\b{name}\b", text)) > 1, f"{module} imports {name} and never uses it"
        for name in re.findall(r"^(?:export )?(?:const|let|function|class) (\w+)", text, re.MULTILINE):
            assert name not in names, f"{name} is in {names.get(name)} and in {module}"
            names[name] = module


def test_what_is_bundled_is_what_its_sums_say_with_the_licence_of_every_package() -> None:
    vendor = PAGE / "vendor"
    lines = (vendor / "SHA256SUMS").read_text().splitlines()
    assert {line.split()[1] for line in lines} == {"plot.min.js", "LICENSES.txt"}
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest
    licences = (vendor / "LICENSES.txt").read_text()
    lock = json.loads((PAGE.parents[2] / "tools" / "page" / "package-lock.json").read_text())
    plot = lock["packages"]["node_modules/@observablehq/plot"]
    assert f"@observablehq/plot {plot['version']}" in licences
    assert "d3-geo 3" in licences
    # Nothing that would end the script element it stands in.
    assert not re.search(r"</script|<!--", (vendor / "plot.min.js").read_text(), re.IGNORECASE)
