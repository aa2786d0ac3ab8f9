"""Where tensors live and in which precision: devices, dtypes, and how many parameters a module has."""

from typing import TYPE_CHECKING

from geo_embed.errors import GeoError

if TYPE_CHECKING:
    import torch
    from torch import nn


def count_parameters(module: "nn.Module") -> tuple[int, int]:
    """How many parameters there are, and how many of them are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


def pick_device(name: str) -> "torch.device":
    """`auto`, `cpu` or `cuda` to a device. Raises GeoError where CUDA is asked for and absent."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise GeoError(
            "no CUDA device is visible to torch",
            where="model.device",
            hint="use --device cpu, or --device auto",
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: "torch.device") -> "torch.dtype":
    """Precision of the backbone; `auto` is bfloat16 on CUDA (float16 where the card lacks it), float32 on CPU."""
    import torch

    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type == "cpu":
        return torch.float32
    return _half_precision()


def amp_dtype(device: "torch.device") -> "torch.dtype | None":
    """What training computes in: bfloat16 on a GPU, float16 where it lacks that; None, for float32, on a CPU."""

    if device.type == "cpu":
        return None
    return _half_precision()


def _half_precision() -> "torch.dtype":
    import torch

    # A card of before 2020 emulates bfloat16, several times slower than float16, and torch counts that as support.
    supported = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if supported else torch.float16
