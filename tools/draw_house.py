"""Draw the wings of the package from the code: who imports whom into CONTRIBUTING.md, the folders into README.md. `make house` runs it.

Needs nothing but Python. An arrow points from a wing to one that it imports, wherever in a file the import stands; an arrow that others already
imply (a → c where a → b → c) is left out.
"""

import ast
import textwrap
import tomllib
from pathlib import Path

BEGIN, END = "<!-- house: drawn by tools/draw_house.py -->\n", "<!-- end of the house -->\n"
GROUND = "ground"


def wings(package: Path) -> dict[str, list[Path]]:
    """The files of each wing by its name, and under GROUND those at the package's top that a wing may import."""
    entrances = {"__init__.py", "__main__.py"}
    rooms = {GROUND: [path for path in sorted(package.glob("*.py")) if path.name not in entrances]}
    for folder in sorted(package.iterdir()):
        if files := sorted(folder.rglob("*.py")):
            rooms[folder.name] = files
    return rooms


def imported(path: Path, package: str) -> set[str]:
    """Names directly below `package` that a file imports, at its top or inside a function."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            names += [f"{package}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith(f"{package}.")}


def arrows(package: Path) -> dict[str, set[str]]:
    """The wings that each wing imports; GROUND stands for every file of the ground floor."""
    rooms = wings(package)
    ground = {path.stem for path in rooms[GROUND]}
    graph: dict[str, set[str]] = {}
    for wing, files in rooms.items():
        names = set().union(*(imported(path, package.name) for path in files))
        targets = {GROUND if name in ground else name for name in names}
        graph[wing] = {target for target in targets if target in rooms and target != wing}
    return graph


def floors(rules: Path) -> dict[str, int]:
    """The floor of every wing in the import rule of pyproject.toml, counted from the top."""
    contracts = tomllib.loads(rules.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    floor = {wing: number for number, layer in enumerate(layers) for wing in layer.split(" | ")}
    return floor | {GROUND: len(layers)}


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """A graph without circles less every arrow that a longer way implies."""

    def below(wing: str) -> set[str]:
        return graph[wing].union(*(below(target) for target in graph[wing]))

    return {
        wing: targets.difference(*(below(target) for target in targets)) for wing, targets in graph.items()
    }


def draw(package: Path, rules: Path) -> str:
    """The house as a Mermaid flowchart, top floor first. An import that breaks the rule is a dotted arrow."""
    rooms, graph, floor = wings(package), arrows(package), floors(rules)
    order = sorted(graph, key=lambda wing: (floor[wing], wing))
    down = reduced(
        {wing: {target for target in graph[wing] if floor[target] > floor[wing]} for wing in order}
    )
    up = {wing: {target for target in graph[wing] if floor[target] <= floor[wing]} for wing in order}

    lines = ["flowchart TD"]
    for wing in order:
        if wing == GROUND:
            title, about = "ground floor", textwrap.wrap(" · ".join(path.stem for path in rooms[GROUND]), 60)
        else:
            title, about = f"{wing}/", textwrap.wrap(subject(package / wing / "__init__.py"), 36)
        lines.append(f'    {wing}["{"<br/>".join([f"<b>{title}</b>", *about])}"]')
    for arrow, targets in (("-->", down), ("-.->", up)):
        lines += [
            f"    {w} {arrow} {' & '.join(sorted(targets[w], key=order.index))}" for w in order if targets[w]
        ]
    return "```mermaid\n" + "\n".join(lines) + "\n```\n"


def list_folders(package: Path, rules: Path) -> str:
    """A line a folder, the ground floor first: what it is, and its files."""
    rooms, floor = wings(package), floors(rules)
    lines = [f"{package.name}/"]
    for wing in sorted(rooms, key=lambda wing: (-floor[wing], wing)):
        if wing == GROUND:
            name, about = "*.py", "The ground floor"
        else:
            name, about = f"{wing}/", subject(package / wing / "__init__.py")
        files = " · ".join(path.stem for path in rooms[wing] if path.name != "__init__.py")
        lines += textwrap.wrap(
            f"  {name:<13}{about:<42}{files}", 118, subsequent_indent=" " * 57, drop_whitespace=True
        )
    return "```\n" + "\n".join(lines) + "\n```\n"


def subject(path: Path) -> str:
    """What a docstring opens with, up to the colon before its verbs."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n")[0].split(":")[0].rstrip(".").replace('"', "")


def with_drawing(page: str, drawing: str) -> str:
    """The page with the drawing between its two marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "\n" + drawing + "\n" + END + after


def pages(root: Path) -> dict[Path, str]:
    """Each page that shows the house, as it should be now."""
    package, rules = root / "geo_embed", root / "pyproject.toml"
    drawings = {
        root / "CONTRIBUTING.md": draw(package, rules),
        root / "README.md": list_folders(package, rules),
    }
    return {
        page: with_drawing(page.read_text(encoding="utf-8"), drawing) for page, drawing in drawings.items()
    }


if __name__ == "__main__":
    for page, text in pages(Path(__file__).resolve().parents[1]).items():
        page.write_text(text, encoding="utf-8")
        print(f"{page.name}: redrawn")
