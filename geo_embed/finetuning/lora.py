"""Low-rank updates (LoRA: Hu et al., ICLR 2022, eq. 3) in place of training a backbone's own weights; by peft, if it is there."""

from typing import Any

import torch
from torch import nn

from geo_embed.backbones.backbone import blocks
from geo_embed.errors import GeoError


def add_lora(tower: nn.Module, rank: int, generator: torch.Generator) -> None:
    """Give every linear layer of the transformer's blocks, of attention and MLP, an update B·A that starts at zero.

    What the tower computes is as before, bit for bit. B·A has the learning rate's own scale: peft's alpha is the rank.

    Args:
        tower: of any family; changed in place.
        rank: of B·A, at least 1.
        generator: draws A.

    Raises:
        GeoError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise GeoError(
            f"low-rank updates need peft, which can't be imported: {error}",
            where="finetune.lora_rank",
            hint="pip install 'geo-embed[lora]', or pip install peft; 0 trains the weights themselves",
        ) from error
    inside = {id(module) for block in blocks(tower) for module in block.modules()}
    wanted = [
        name
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside
    ]
    # peft draws from the global generator, which is left as it was.
    with torch.random.fork_rng():
        torch.manual_seed(generator.initial_seed())
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=wanted), tower)


def train_lora_only(tower: nn.Module) -> None:
    """Freeze all of a tower but the updates of `add_lora` that are trained already."""
    for name, parameter in tower.named_parameters():
        if ".lora_B." not in name and not is_lora_a(name):
            parameter.requires_grad_(False)


def is_lora_a(name: str) -> bool:
    """Whether a parameter of this name is the A of an update B·A."""
    return ".lora_A." in name


def merge_lora(tower: nn.Module) -> None:
    """Add every update to the weights that it goes with: the tower is plain again, as if they had been trained."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(tower.named_modules()):
        if isinstance(module, LoraLayer):
            layer: Any = module
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(tower.get_submodule(parent), last, layer.get_base_layer())
    for mark in ("peft_config", "_hf_peft_config_loaded"):
        if mark in vars(tower):
            delattr(tower, mark)
