"""A model divided among the processes of a team: each keeps its part of every weight, gradient and moment.

It is torch's FSDP2 (Zhao et al., VLDB 2023; DTensors, one dimension): a layer's weights are whole while it is at work, and
gradients are added up and divided as they come. What is written to disk is whole, so that any number of processes can read it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from geo_embed.backbones.backbone import blocks
from geo_embed.errors import GeoError
from geo_embed.finetuning.model import GeoModel


def shard(model: GeoModel, device: torch.device, processes: int) -> None:
    """Divide a model in place, a group per layer of the tower and one for the rest; its parameters are DTensors then.

    Gradients are added up over the processes, not averaged: each process's loss is its part of the team's.

    Args:
        model: the same in every process.
        device: where it lies.
        processes: of the team.

    Raises:
        GeoError: torch is too old, or weights aren't in torch's own order.
    """
    from torch.distributed import fsdp
    from torch.distributed.device_mesh import init_device_mesh

    kind: Any = getattr(fsdp, "FSDPModule", None)
    if not hasattr(kind, "set_force_sum_reduction_for_comms"):
        raise GeoError(
            f"torch {torch.__version__} can't divide a model as it has to be",
            where="finetune.sharded",
            hint="install a newer torch, or set it to false",
        )
    if not all(parameter.is_contiguous() for parameter in model.parameters()):
        raise GeoError(
            "a model in channels-last order can't be divided",
            where="finetune.sharded",
            hint="set it, or finetune.channels_last, to false",
        )
    mesh = init_device_mesh(device.type, (processes,))
    for layer in blocks(model.tower):
        fsdp.fully_shard(layer, mesh=mesh)
    # Heads and losses read weights after the tower is done; those outside its layers stay whole until the pass is over.
    fsdp.fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for name in ("encode_views", "predict_variants"):
        fsdp.register_fsdp_forward_method(model, name)
    for module in model.modules():
        if isinstance(module, kind):
            module.set_gradient_divide_factor(1.0)
            # gloo multiplies nothing on the way.
            module.set_force_sum_reduction_for_comms(True)


def reshard(model: GeoModel) -> None:
    """Drop whole weights that a pass without gradients left behind, so that the parts may change; nothing in a whole model."""
    drop_whole: Any = getattr(model, "reshard", None)
    if drop_whole is not None:
        drop_whole()


def whole(tensor: Tensor) -> Tensor:
    """All of a divided tensor, which every process has to ask for; another as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divide(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This process's part of a tensor that all have whole, as `like` is divided; as it is, if that isn't, or has another shape."""
    if not isinstance(like, DTensor) or like.shape != tensor.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
