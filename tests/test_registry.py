"""A name is judged before anything is imported, and an entry says what it costs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from geo_embed.errors import GeoError
from geo_embed.registry import REGISTRIES, Registry, Size
from geo_embed.settings import known_keys, resolve


def shelf(**built_in: str) -> Registry[Any]:
    return Registry("shelf", "model.shelf", built_in, "geo_embed_tests.nothing", priced=True)


def make() -> str:
    return "made"


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.setting)
def test_every_built_in_name_is_registered_by_its_module_and_no_other_is(registry: Registry[Any]) -> None:
    for name in registry.built_in:
        entry = registry[name]
        assert entry.name == name
        assert entry.make.__module__ == registry.built_in[name]
    assert registry.names() == tuple(registry.built_in)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.setting)
def test_every_built_in_entry_declares_settings_that_exist_and_a_docstring(registry: Registry[Any]) -> None:
    for name in registry.built_in:
        assert registry[name].settings <= set(known_keys())
        assert ">>>" in registry[name].make.__doc__


def test_an_unknown_name_is_refused_with_the_known_ones_or_the_nearest() -> None:
    trees = shelf()
    trees.register("oak", flop=lambda size: 1)(make)
    trees.register("pine", flop=lambda size: 1)(make)
    with pytest.raises(GeoError, match="no such shelf: 'pin'") as caught:
        trees["pin"]
    assert caught.value.hint == "did you mean 'pine'?"
    assert caught.value.where == "model.shelf"
    with pytest.raises(GeoError) as caught:
        trees["xyz"]
    assert caught.value.hint == "'oak' or 'pine'"
    with pytest.raises(ValueError, match=r"Input should be 'oak' or 'pine' \(did you mean 'oak'\?\)"):
        trees.check("oaks")
    assert trees.check("oak") == "oak"


def test_a_misspelt_name_in_the_settings_names_key_value_origin_and_the_nearest() -> None:
    with pytest.raises(GeoError) as caught:
        resolve(settings=["model.fusion=averge"])
    assert str(caught.value).startswith("model.fusion: ")
    assert "'average'?" in str(caught.value)
    assert "'averge'" in str(caught.value)
    assert caught.value.where == "--set"


def test_a_name_belongs_to_the_module_that_took_it_which_may_say_it_again() -> None:
    trees = shelf(elm="geo_embed.somewhere")
    trees.register("oak", flop=lambda size: 1)(make)
    trees.register("oak", settings={"model.dropout"}, flop=lambda size: 2 * size.dim)(make)
    assert trees["oak"].settings == {"model.dropout"}
    flop = trees["oak"].flop
    assert flop is not None
    assert flop(Size(dim=3, views=1, width=1, depth=1)) == 6
    for name, owner in (("oak", __name__), ("elm", "geo_embed.somewhere")):

        def other() -> None: ...

        other.__module__ = "elsewhere"
        with pytest.raises(GeoError, match=f"a shelf '{name}' already, in {owner}"):
            trees.register(name, flop=lambda size: 1)(other)


def test_an_entry_without_a_price_is_refused_where_prices_count() -> None:
    with pytest.raises(GeoError, match="what it costs"):
        shelf().register("oak")


def test_names_are_known_without_torch() -> None:
    code = (
        "import sys; from geo_embed.config import Config; from geo_embed.registry import FUSIONS; "
        "Config(model={'fusion': 'evidence'}); assert 'nothing' not in FUSIONS; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
