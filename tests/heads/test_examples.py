"""The examples in the docstrings run, and give what they say."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import geo_embed.heads

MODULES = [module.name for module in pkgutil.iter_modules(geo_embed.heads.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name: str) -> None:
    torch.manual_seed(0)
    module = importlib.import_module(f"geo_embed.heads.{name}")
    failed, _ = doctest.testmod(module, extraglobs={"torch": torch})
    assert failed == 0
