"""`make quick` runs the tests that changed files call for."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUICK = runpy.run_path(str(ROOT / "tools" / "quick.py"))
TESTS = {
    *(
        "tests/test_house.py",
        "tests/test_config.py",
        "tests/heads/test_cells.py",
        "tests/heads/test_fusion.py",
    ),
    *("tests/cache/test_store.py", "tests/faults/test_kill.py"),
}


def called_for(*changed: str) -> set[str]:
    chosen: set[str] = QUICK["tests_of"](changed, TESTS)
    return chosen - {"tests/test_house.py"}


def test_a_file_calls_for_its_mirror() -> None:
    assert called_for("geo_embed/heads/cells.py", "geo_embed/config.py") == {
        "tests/heads/test_cells.py",
        "tests/test_config.py",
    }


def test_a_file_without_a_mirror_calls_for_its_wing() -> None:
    assert called_for("geo_embed/heads/new.py") == {"tests/heads/test_cells.py", "tests/heads/test_fusion.py"}
    assert called_for("geo_embed/new.py") == set()


def test_a_test_calls_for_itself_and_what_is_no_code_for_nothing() -> None:
    assert called_for("tests/faults/test_kill.py", "README.md", "tests/small.py") == {
        "tests/faults/test_kill.py"
    }


def test_the_rules_of_the_house_are_always_asked() -> None:
    assert QUICK["tests_of"]([], TESTS) == {"tests/test_house.py"}


def test_a_wing_may_be_named() -> None:
    assert QUICK["paths_of"](["heads", "tests/cache"]) == ["tests/heads", "tests/cache"]
