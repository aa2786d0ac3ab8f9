"""A network as an ONNX file, and what ONNX Runtime makes of it beside torch."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.errors import GeoError, disk_errors

if TYPE_CHECKING:
    import torch
    from torch import nn

_INSTALL = "pip install 'geo-embed[onnx]'"
OUTPUTS = ("probabilities", "point")
# An angle's sine beyond this one is as steep as single precision stands; points that far apart are antipodes.
_STEEP = 0.999
_FLOAT, _DOUBLE = 1, 11
# Of weights; a file of ONNX's own format has two gigabytes at most.
MOST_BYTES = 1 << 30


def check_onnx() -> None:
    """Raise GeoError where what writes and runs ONNX files isn't installed. Cheap: call it before any work is done."""
    from importlib.util import find_spec

    absent = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if absent:
        raise GeoError(f"--onnx needs {', '.join(absent)}, which isn't installed", hint=_INSTALL)


def write_onnx(
    network: "nn.Module",
    inputs: "Sequence[torch.Tensor | Sequence[torch.Tensor]]",
    names: Sequence[str],
    path: Path,
) -> None:
    """Write a network as ONNX, the first dimension of every input and output free; weights beyond a gigabyte go into a file beside it.

    Args:
        network: gives `OUTPUTS`.
        inputs: of more than one sample; several tensors may be one argument.
        names: of the tensors.
        path: of the file.

    Raises:
        GeoError: a step of it has no form in ONNX, or the disk is full.
    """
    import torch
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad(), _quiet():
            example_inputs = tuple(
                tensors if isinstance(tensors, torch.Tensor) else tuple(tensors) for tensors in inputs
            )
            shapes = tuple(
                {0: batch} if isinstance(tensors, torch.Tensor) else tuple({0: batch} for _ in tensors)
                for tensors in example_inputs
            )
            program = torch.export.export(network, example_inputs, dynamic_shapes=shapes)
            written: Any = torch.onnx.export(
                program,
                example_inputs,
                input_names=list(names),
                output_names=list(OUTPUTS),
                dynamo=True,
                verbose=False,
                custom_translation_table=_translations(),
                # Its rules take a constant of 1e-9 for 0, and leave out where it is added: logarithms of 0 come of that.
                optimize=False,
            )
            fold_constants(written.model)
            # ONNX Runtime complains of a constant that nothing uses, to whoever runs the file.
            remove_unused_nodes(written.model)
            # Each node says by which line of which file of this machine it was made.
            for node in written.model.graph.all_nodes():
                node.metadata_props.clear()
    # torch's exporter fails in as many ways as there are models.
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        # Below general advice, the exporter names what it stumbled over.
        why = next((line for line in lines if line.startswith("<class ")), lines[0])
        raise GeoError(
            f"torch can't write this model as ONNX: {type(error).__name__}: {why:.200}",
            where=path.name,
            hint="do without --onnx; or --heads-only --onnx, if it is the backbone",
        ) from error
    with disk_errors(path):
        written.save(path, external_data=_bytes_of(network) > MOST_BYTES)


def run_onnx(path: Path, inputs: dict[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """What ONNX Runtime, on the CPU, makes of inputs by name: `OUTPUTS`. Raises GeoError where it can't run the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        states, points = session.run(list(OUTPUTS), inputs)
    # Its exceptions share no class but this one.
    except Exception as error:
        why = str(error).splitlines()[0]
        raise GeoError(f"ONNX Runtime can't run what torch wrote: {why:.200}", where=path.name) from error
    return states, points


def _bytes_of(network: "nn.Module") -> int:
    tensors = {t.data_ptr(): t.nbytes for t in (*network.parameters(), *network.buffers())}
    return sum(tensors.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks, on packages that nobody needs, off people's screens."""
    import logging

    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


def _translations() -> "dict[Callable[..., Any], Callable[..., Any]]":
    """How two functions are written that ONNX Runtime has in single precision alone, and the points need in double; and a stable sort.

    A first value is rounded to single precision, and brought to double by the sine, which it has in both.
    """
    import torch
    from onnxscript import opset18 as op

    def number(value: float) -> Any:
        return op.Constant(value=_double(value))

    def single_asin(x: Any) -> Any:
        return op.Cast(op.Asin(op.Cast(x, to=_FLOAT)), to=_DOUBLE)

    def asin(self: Any) -> Any:
        if self.dtype == _FLOAT:
            return op.Asin(self)
        # Newton's step for sin a = x squares the error, some 1e-7 before it.
        rough = single_asin(self)
        better = op.Add(rough, op.Div(op.Sub(self, op.Sin(rough)), op.Max(op.Cos(rough), number(1e-3))))
        return op.Where(op.Less(op.Abs(self), number(_STEEP)), better, rough)

    def atan2(self: Any, other: Any) -> Any:
        # a ≈ asin(y / r), turned over where x < 0; then what is left: sin(angle − a) = (y cos a − x sin a) / r, and asin s ≈ s + s³/6.
        y, x = self, other
        r = op.Max(op.Sqrt(op.Add(op.Mul(x, x), op.Mul(y, y))), number(1e-300))
        front = single_asin(op.Div(y, r))
        half_turn = op.Where(op.Less(y, number(0.0)), number(-math.pi), number(math.pi))
        a = op.Where(op.Less(x, number(0.0)), op.Sub(half_turn, front), front)
        s = op.Div(op.Sub(op.Mul(y, op.Cos(a)), op.Mul(x, op.Sin(a))), r)
        return op.Add(a, op.Add(s, op.Div(op.Mul(s, op.Mul(s, s)), number(6.0))))

    def stable_sort(self: Any, *, stable: bool, dim: int = -1, descending: bool = False) -> Any:
        # Of equal values ONNX has the one of the lower index first.
        size = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))
        return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)

    return {
        torch.ops.aten.asin.default: asin,
        torch.ops.aten.atan2.default: atan2,
        torch.ops.aten.sort.stable: stable_sort,
    }


def _double(value: float) -> Any:
    import onnx

    return onnx.helper.make_tensor("number", _DOUBLE, [], [value])
