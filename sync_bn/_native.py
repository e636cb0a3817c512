"""The four passes of `_arithmetic`, each as a loop over the memory of a CPU: `_kernels.cpp`, by ctypes.

The library is built where the package is installed with a C++ compiler at hand. Where it is not there, or for
a tensor that it does not handle, `_arithmetic` does the same.
"""

import ctypes
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from sync_bn._activation import Activation
from sync_bn._arithmetic import LocalGradients, Moments, Scaling

_INTERFACE = 1
_CHANNELS_LAST = {2: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}
_LANES = 16
_BLOCK_VALUES = 2**19  # of an (N·S, C) are summed by one thread at a time


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("outer", "channels", "inner")]


class _Coefficients(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("shift", "scale", "offset")),
        ("slope", ctypes.c_float),
    ]


def _load() -> ctypes.CDLL | None:
    spec = find_spec("sync_bn._kernels")
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        if library.sync_bn_interface() != _INTERFACE:
            return None
    except (OSError, AttributeError):  # built for another machine or version, or a torch without GNU's OpenMP
        return None
    pointer, half, size, real = ctypes.c_void_p, ctypes.c_bool, ctypes.c_long, ctypes.c_double
    pointers = [pointer] * 9
    arguments: dict[str, list[Any]] = {
        "sums": [half, pointer, _Shape, size, *pointers[:2]],
        "normalise": [
            *(half, *pointers[:3], _Shape, ctypes.c_float),
            *(pointer, real, *pointers[:4]),
        ],
        "gradient_sums": [half, *pointers[:4], _Shape, size, _Coefficients, *pointers[:3]],
        "input_gradient": [half, *pointers[:3], _Shape, _Coefficients, *pointers[:6]],
        "update": [size, *pointers[:3], real, *pointers[:3]],
    }
    for name, types in arguments.items():
        function = library[f"sync_bn_{name}"]
        function.argtypes, function.restype = types, None
        setattr(library, f"sync_bn_{name}", function)
    return library


_LIBRARY = _load()


def is_built() -> bool:
    return _LIBRARY is not None


class Passes:
    """The four passes for tensors that lie in memory as `x` does."""

    def __init__(self, x: Tensor, shape: _Shape) -> None:
        self._shape = shape
        self._half = x.dtype == torch.bfloat16

    def local_sums(self, x: Tensor, w: None) -> Tensor:  # noqa: ARG002
        channels = int(self._shape.channels)
        shift = _room(channels, dtype=torch.float32)
        block, sums = self._room_for_sums(2 * channels + 1)
        _library().sync_bn_sums(
            self._half, x.data_ptr(), self._shape, block, shift.data_ptr(), sums.data_ptr()
        )
        return _added(sums)

    def normalise(
        self,
        x: Tensor,
        sums: Tensor,
        eps: float,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        activation: Activation | None,
    ) -> tuple[Tensor, Moments, Scaling]:
        z = torch.empty_like(x)
        weight, bias = _floats(weight), _floats(bias)
        residual = None if residual is None else _like(x, residual)
        channels = int(self._shape.channels)
        doubles, floats = _room(4, channels), _room(3, channels, dtype=torch.float32)
        _library().sync_bn_normalise(
            self._half,
            *(x.data_ptr(), _pointer(residual), z.data_ptr(), self._shape, _slope(activation)),
            *(sums.data_ptr(), eps, _pointer(weight), _pointer(bias), doubles.data_ptr(), floats.data_ptr()),
        )
        mean, var, rest, invstd = doubles.unbind()
        shift, scale, offset = floats.unbind()
        return z, Moments(mean, var, sums[-1]), Scaling(shift, scale, offset, rest, invstd)

    def local_gradient_sums(
        self, dz: Tensor, x: Tensor, by: Scaling, residual: Tensor | None, activation: Activation | None
    ) -> LocalGradients:
        """With a residual dy is written, because it is the residual's gradient; else it stays dz."""
        dz = _like(x, dz)
        residual = None if residual is None or activation is None else _like(x, residual)
        dy = dz if residual is None else torch.empty_like(x)
        block, sums = self._room_for_sums(2 * int(self._shape.channels))
        _library().sync_bn_gradient_sums(
            self._half,
            *(dz.data_ptr(), x.data_ptr(), _pointer(residual), dy.data_ptr(), self._shape, block),
            *(_coefficients(by, activation), by.rest.data_ptr(), by.invstd.data_ptr(), sums.data_ptr()),
        )
        return LocalGradients(_added(sums), dy, activation if residual is None else None)

    def input_gradient(
        self,
        local: LocalGradients,
        x: Tensor,
        by: Scaling,
        n: Tensor,
        weight: Tensor | None,
        sums: Tensor,
        w: None,  # noqa: ARG002
    ) -> Tensor:
        dx, weight = torch.empty_like(x), _floats(weight)
        room = _room(3 * int(self._shape.channels), dtype=torch.float32)
        _library().sync_bn_input_gradient(
            self._half,
            *(local.dy.data_ptr(), x.data_ptr(), dx.data_ptr(), self._shape),
            *(_coefficients(by, local.activation_left), by.rest.data_ptr(), by.invstd.data_ptr()),
            *(n.data_ptr(), _pointer(weight), sums.data_ptr(), room.data_ptr()),
        )
        return dx

    def _room_for_sums(self, size: int) -> tuple[int, Tensor]:
        """Rows that are summed as one block, and room for the sums of each: an (N, C, S) is one block."""
        outer, channels, inner = self._shape.outer, self._shape.channels, self._shape.inner
        block = max(_LANES, _BLOCK_VALUES // channels)
        blocks = 1 if inner > 1 else -(-outer // block)
        return block, _room(blocks, size)


def passes(x: Tensor, activation: Activation | None) -> Passes | None:
    """None for what is not handled: other types, other devices, odd strides, rows of a few values."""
    if (
        _LIBRARY is None
        or type(x) is not Tensor
        or not x.is_cpu
        or x.dtype not in (torch.float32, torch.bfloat16)
        or (activation is not None and activation.slope is None)
    ):
        return None
    shape = _shape(x)
    return None if shape is None else Passes(x, shape)


def update_running_statistics(
    running_mean: Tensor, running_var: Tensor, batches: Tensor, momentum: float | None, moments: Moments
) -> bool:
    """As in `_arithmetic`; False if the buffers are not float32 on the CPU, and nothing was done."""
    if _LIBRARY is None or not (
        _is_plain(running_mean, torch.float32)
        and _is_plain(running_var, torch.float32)
        and _is_plain(batches, torch.int64)
    ):
        return False
    _LIBRARY.sync_bn_update(
        running_mean.numel(),
        *(moments.mean.data_ptr(), moments.var.data_ptr(), moments.n.data_ptr()),
        -1.0 if momentum is None else momentum,
        *(batches.data_ptr(), running_mean.data_ptr(), running_var.data_ptr()),
    )
    torch.autograd.graph.increment_version((running_mean, running_var, batches))
    return True


def _is_plain(buffer: Tensor, dtype: torch.dtype) -> bool:
    return type(buffer) is Tensor and buffer.dtype == dtype and buffer.is_cpu and buffer.is_contiguous()


def _shape(x: Tensor) -> _Shape | None:
    samples, channels = x.shape[:2]
    values = x.numel()
    if values == 0:
        return None
    inner = values // (samples * channels)
    if inner >= _LANES and x.is_contiguous():
        return _Shape(samples, channels, inner)
    if channels >= _LANES and _is_channels_last(x):
        return _Shape(samples * inner, channels, 1)
    return None


def _is_channels_last(x: Tensor) -> bool:
    memory_format = _CHANNELS_LAST.get(x.dim())
    if memory_format is None:
        return x.movedim(1, -1).is_contiguous()
    return x.is_contiguous(memory_format=memory_format)


def _room(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Memory for numbers of C++, whatever torch's defaults are."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def _added(sums: Tensor) -> Tensor:
    return sums[0] if sums.shape[0] == 1 else sums.sum(0)


def _like(x: Tensor, other: Tensor) -> Tensor:
    """`other` with the dtype and the strides of x, as it is where it has them."""
    if other.dtype == x.dtype and other.stride() == x.stride():
        return other
    return torch.empty_like(x).copy_(other)


def _floats(values: Tensor | None) -> Tensor | None:
    if values is None or (values.dtype == torch.float32 and values.is_contiguous()):
        return values
    return values.float().contiguous()


def _slope(activation: Activation | None) -> float:
    if activation is None:
        return 1.0
    assert activation.slope is not None
    return activation.slope


def _coefficients(by: Scaling, activation: Activation | None) -> _Coefficients:
    return _Coefficients(by.shift.data_ptr(), by.scale.data_ptr(), by.offset.data_ptr(), _slope(activation))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _library() -> ctypes.CDLL:
    assert _LIBRARY is not None
    return _LIBRARY
