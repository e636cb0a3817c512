"""The four passes of `_arithmetic` as compiled loops for CPUs: bindings to `_kernels.cpp` with ctypes.

The library is built when the package is installed and there is a C++ compiler. Without it, or for a tensor
that it does not support, `_arithmetic` is used.
"""

import ctypes
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sync_bn import _memory
from sync_bn._activation import Activation
from sync_bn._arithmetic import LocalGradients, Moments, Scaling
from sync_bn._memory import is_channels_last, like

_INTERFACE = 3
_LANES = 16


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("outer", "channels", "inner")]


def _load() -> ctypes.CDLL | None:
    spec = find_spec("sync_bn._kernels")
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        if library.sync_bn_interface() != _INTERFACE:
            return None
    except (OSError, AttributeError):  # built for another machine or version, or torch lacks GNU's OpenMP
        return None
    pointer, half, real, slope = ctypes.c_void_p, ctypes.c_bool, ctypes.c_double, ctypes.c_float
    arguments: dict[str, list[Any]] = {
        "sums": [half, pointer, _Shape, pointer],
        "normalise": [half, *[pointer] * 3, _Shape, slope, pointer, real, *[pointer] * 3],
        "gradient_sums": [half, *[pointer] * 4, _Shape, slope, *[pointer] * 2],
        "input_gradient": [half, *[pointer] * 3, _Shape, slope, *[pointer] * 4],
        "update": [ctypes.c_long, *[pointer] * 3, real, *[pointer] * 3],
    }
    for name, types in arguments.items():
        function = library[f"sync_bn_{name}"]
        function.argtypes, function.restype = types, None
        setattr(library, f"sync_bn_{name}", function)
    return library


_LIBRARY = _load()


def is_built() -> bool:
    """Whether the library of CPU loops is available."""
    return _LIBRARY is not None


def library() -> ctypes.CDLL | None:
    """Returns the library, if it is built."""
    return _LIBRARY


class SavedScaling(NamedTuple):
    """The moments and the contents of `_arithmetic.Scaling` in one tensor, (6C,) float64, for the loops."""

    numbers: Tensor

    def scaling(self) -> Scaling:
        """Returns the coefficients as views, for `_arithmetic`."""
        channels = len(self.numbers) // 6
        rest, invstd = self.numbers[2 * channels : 4 * channels].chunk(2)
        shift, scale, offset = self.numbers.view(torch.float32)[8 * channels : 11 * channels].chunk(3)
        return Scaling(shift, scale, offset, rest, invstd)


class Passes:
    """The four passes for tensors with the shape, dtype and memory layout of `x`. See `_arithmetic`.

    The loops read and write raw memory, so each method checks or converts every tensor argument except `x`.
    `handles` checks whether `x` still has its original layout.
    """

    def __init__(self, x: Tensor, shape: _Shape) -> None:
        self._shape = shape
        self._size, self._stride, self._dtype = x.shape, x.stride(), x.dtype
        self._channels = x.shape[1]
        self._half = x.dtype == torch.bfloat16

    def handles(self, dz: Tensor, x: Tensor, weight: Tensor | None, residual: Tensor | None) -> bool:
        """Whether the backward pass may use the loops: saved-tensor hooks may have changed saved tensors."""
        return (
            _is_dense(x)
            and (x.shape, x.stride(), x.dtype) == (self._size, self._stride, self._dtype)
            and all(
                _is_readable(values) and values.shape == self._size
                for values in (dz, residual)
                if values is not None
            )
            and _is_per_channel(weight, self._channels)
        )

    def local_sums(self, x: Tensor, w: None) -> Tensor:  # noqa: ARG002
        sums = _doubles(2 * self._channels + 1)
        _library().sync_bn_sums(self._half, x.data_ptr(), self._shape, sums.data_ptr())
        return sums

    def normalise(
        self,
        x: Tensor,
        sums: Tensor,
        eps: float,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        activation: Activation | None,
    ) -> tuple[Tensor, Moments, SavedScaling]:
        channels = self._channels
        z, saved = torch.empty_like(x), _doubles(6 * channels)
        weight, bias = _floats(weight, channels), _floats(bias, channels)
        residual = None if residual is None else like(x, residual)
        _library().sync_bn_normalise(
            self._half,
            *(x.data_ptr(), _pointer(residual), z.data_ptr(), self._shape, _slope(activation)),
            *(sums.data_ptr(), eps, _pointer(weight), _pointer(bias), saved.data_ptr()),
        )
        mean, var = saved.narrow(0, 0, channels), saved.narrow(0, channels, channels)
        return z, Moments(mean, var, sums[-1]), SavedScaling(saved)

    def local_gradient_sums(
        self,
        dz: Tensor,
        x: Tensor,
        saved: SavedScaling,
        residual: Tensor | None,
        activation: Activation | None,
    ) -> LocalGradients:
        """Returns the sums and dy. Computes dy only with a residual, whose gradient it is; else dy is dz."""
        dz, sums = like(x, dz), _doubles(2 * self._channels)
        residual = None if residual is None or activation is None else like(x, residual)
        dy = dz if residual is None else torch.empty_like(x)
        _library().sync_bn_gradient_sums(
            self._half,
            *(dz.data_ptr(), x.data_ptr(), _pointer(residual), dy.data_ptr(), self._shape),
            *(_slope(activation), saved.numbers.data_ptr(), sums.data_ptr()),
        )
        return LocalGradients(sums, dy, activation if residual is None else None)

    def input_gradient(
        self,
        local: LocalGradients,
        x: Tensor,
        saved: SavedScaling,
        n: Tensor,
        weight: Tensor | None,
        sums: Tensor,
        w: None,  # noqa: ARG002
    ) -> Tensor:
        dx, weight = torch.empty_like(x), _floats(weight, self._channels)
        _library().sync_bn_input_gradient(
            self._half,
            *(
                local.dy.data_ptr(),
                x.data_ptr(),
                dx.data_ptr(),
                self._shape,
                _slope(local.pending_activation),
            ),
            *(saved.numbers.data_ptr(), n.data_ptr(), _pointer(weight), sums.data_ptr()),
        )
        return dx


def passes(
    x: Tensor,
    activation: Activation | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Passes | None:
    """Returns the passes for x; None if the loops do not support a type, device, dtype, strides or size."""
    if (
        _LIBRARY is None
        or not _is_dense(x)
        or x.dtype not in (torch.float32, torch.bfloat16)
        or (activation is not None and activation.slope is None)
    ):
        return None
    channels = x.shape[1]
    if not (_is_per_channel(weight, channels) and _is_per_channel(bias, channels)):
        return None
    if residual is not None and not (_is_readable(residual) and residual.shape == x.shape):
        return None
    shape = _shape(x)
    return None if shape is None else Passes(x, shape)


def update_running_statistics(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    momentum: float | None,
    moments: Moments,
) -> bool:
    """Does the update of `_arithmetic`. Returns False, without any change, if the loop cannot do it.

    It needs all three buffers, as plain contiguous CPU tensors: float32 statistics and an int64 counter.
    """
    channels = moments.mean.numel()
    if _LIBRARY is None or running_mean is None or running_var is None or batches is None:
        return False
    if not (
        _is_contiguous_buffer(running_mean, torch.float32, channels)
        and _is_contiguous_buffer(running_var, torch.float32, channels)
        and _is_contiguous_buffer(batches, torch.int64, 1)
        and _is_contiguous_buffer(moments.mean, torch.float64, channels)
        and _is_contiguous_buffer(moments.var, torch.float64, channels)
        and _is_contiguous_buffer(moments.n, torch.float64, 1)
    ):
        return False
    _LIBRARY.sync_bn_update(
        channels,
        *(moments.mean.data_ptr(), moments.var.data_ptr(), moments.n.data_ptr()),
        -1.0 if momentum is None else momentum,
        *(batches.data_ptr(), running_mean.data_ptr(), running_var.data_ptr()),
    )
    torch.autograd.graph.increment_version((running_mean, running_var, batches))
    return True


def _is_readable(values: Tensor) -> bool:
    return values.is_cpu and _memory.is_readable(values)


def _is_dense(values: Tensor) -> bool:
    return values.is_cpu and _memory.is_dense(values)


def _is_per_channel(values: Tensor | None, channels: int) -> bool:
    return values is None or (_is_readable(values) and values.shape == (channels,))


def _is_contiguous_buffer(values: Tensor, dtype: torch.dtype, numbers: int) -> bool:
    return (
        _is_dense(values) and values.dtype == dtype and values.numel() == numbers and values.is_contiguous()
    )


def _shape(x: Tensor) -> _Shape | None:
    samples, channels = x.shape[:2]
    values = x.numel()
    if values == 0:
        return None
    inner = values // (samples * channels)
    if inner >= _LANES and x.is_contiguous():
        return _Shape(samples, channels, inner)
    if channels >= _LANES and is_channels_last(x):
        return _Shape(samples * inner, channels, 1)
    return None


def _doubles(size: int) -> Tensor:
    """Returns uninitialised float64 memory on the CPU, whatever torch's defaults are."""
    return torch.empty(size, dtype=torch.float64, device="cpu")


def _floats(values: Tensor | None, channels: int) -> Tensor | None:
    """Returns contiguous float32 values, (channels,); a copy only if they are not so already."""
    if values is None or _is_contiguous_buffer(values, torch.float32, channels):
        return values
    return torch.empty(channels, dtype=torch.float32, device="cpu").copy_(values)


def _slope(activation: Activation | None) -> float:
    if activation is None:
        return 1.0
    assert activation.slope is not None
    return activation.slope


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _library() -> ctypes.CDLL:
    assert _LIBRARY is not None
    return _LIBRARY
