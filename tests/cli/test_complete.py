"""The Tab key: commands, runs, choices and settings, without a heavy library."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Geo


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("geo fit", ["fit-heads"]),
        ("geo cache ver", ["verify"]),
        ("geo evaluate ", ["first", "second"]),
        ("geo evaluate f", ["first"]),
        ("geo finetune --init s", ["second"]),
        ("geo ensemble first s", ["second"]),
        ("geo report f", ["first"]),
        ("geo runs compare first s", ["second"]),
        ("geo plot map f", ["first"]),
        ("geo fit-heads --preset ", ["pigeon", "best"]),
        ("geo --set paths.runs_dir=others evaluate ", ["third"]),
        ("geo --set paths.runs_dir=absent evaluate ", []),
        ("geo --set nonsense=1 evaluate ", []),
        ("geo --set training.seed", ["training.seed=", "training.seeds="]),
    ],
)
def test_a_shell_is_offered_what_can_stand_there(
    geo: Geo, tmp_path: Path, line: str, offered: list[str]
) -> None:
    for run in ("runs/first", "runs/second", "runs/.half", "others/third"):
        (tmp_path / run).mkdir(parents=True)
    script = (
        "import sys\n"
        "from geo_embed.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    assert not {'torch', 'pandas', 'numpy', 'zarr'} & sys.modules.keys()\n"
    )
    words = line.split(" ")
    shell = {"_GEO_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    ran = geo(env=shell, command=[sys.executable, "-c", script])
    assert (ran.out.split(), ran.err) == (offered, "")


def test_the_shells_own_script_is_shown(geo: Geo) -> None:
    ran = geo(
        "--show-completion", command=["bash", "-c", f'{sys.executable} -m geo_embed "$@"; true', "bash"]
    )
    assert "complete -o default -F _geo_completion geo" in ran.out
