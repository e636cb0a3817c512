"""The four passes of `_arithmetic` on GPUs: launches the kernels of `_triton_kernels`.

They run if Triton is installed (torch brings it in its builds for CUDA and ROCm) and supports the GPU.
Without it, or for a tensor that they do not support, `_arithmetic` is used. No method waits for the device,
and all memory is torch's, so a step can be captured in a CUDA graph.
"""

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from sync_bn import _arithmetic
from sync_bn._activation import Activation
from sync_bn._arithmetic import LocalGradients, Moments, Scaling
from sync_bn._memory import is_channels_last, is_dense, is_readable, like

_DEVICES: tuple[str, ...] = "cuda", "xpu"  # "cuda" is also that of AMD's GPUs
_DTYPES = torch.float32, torch.float16, torch.bfloat16
_MOST_VALUES = 2**31 - 1  # the kernels count them with 32 bits

_TILE = 2048  # values of a tile, at most
_WIDTH = 1024  # values of a tile that are next to each other, at most
_NARROWEST = 64  # and at least, where the tensor has as many
_WARPS = 4
_PROGRAMS = 1024  # about so many programs reduce a tensor; the number does not depend on the GPU
_CHANNELS_A_PROGRAM = 16  # in kernels for per-channel numbers
_CHANNELS_OF_UPDATE = 512  # in each round of the one program that updates the running statistics
_PARTS_AT_ONCE = 64


def version() -> str:
    """Returns Triton's version; "" if it is not installed."""
    return str(import_module("triton").__version__) if find_spec("triton") else ""


class Tiling(NamedTuple):
    """A tensor as outer × channels × inner values, in tiles of columns × rows × width of them."""

    outer: int
    channels: int
    inner: int
    rows: int
    columns: int
    width: int

    @classmethod
    def of(cls, outer: int, channels: int, inner: int) -> Self:
        """Returns a tiling with powers of two, as Triton requires."""
        width = min(_power_of_two(inner), _WIDTH)
        side_by_side = min(_power_of_two(channels), max(_NARROWEST // width, 1))
        rows = min(_power_of_two(outer), _TILE // (side_by_side * width))
        columns = min(_power_of_two(channels), _TILE // (rows * width))
        return cls(outer, channels, inner, rows, columns, width)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the tensor, and the numbers of tiles that cover its channels and its inner values."""
        return self.outer, self.channels, self.inner, self.blocks, self.across

    @property
    def tile(self) -> dict[str, int]:
        return {"rows": self.rows, "columns": self.columns, "width": self.width}

    @property
    def blocks(self) -> int:
        return _divided(self.channels, self.columns)

    @property
    def across(self) -> int:
        return _divided(self.inner, self.width)

    @property
    def tiles(self) -> int:
        """Number of tiles that cover all values of a block's channels."""
        return _divided(self.outer, self.rows) * self.across

    @property
    def splits(self) -> int:
        """Number of programs that share the tiles of a block of channels in a reduction."""
        return min(self.tiles, _divided(_PROGRAMS, self.blocks))


class SavedScaling(NamedTuple):
    """The moments and the contents of `_arithmetic.Scaling`, for the kernels.

    wide: mean, variance, rest and invstd, (4, C) float64. narrow: shift, scale and offset, (3, C) float32.
    """

    wide: Tensor
    narrow: Tensor

    def scaling(self) -> Scaling:
        """Returns the coefficients as views, for `_arithmetic`."""
        return Scaling(self.narrow[0], self.narrow[1], self.narrow[2], self.wide[2], self.wide[3])


class Passes:
    """The four passes for tensors with the shape, dtype, device and memory layout of `x`. See `_arithmetic`.

    The kernels read and write raw memory, so each method checks or converts every tensor argument except `x`.
    `handles` checks whether `x` still has its original layout.
    """

    def __init__(self, x: Tensor, tiling: Tiling) -> None:
        self._tiling = tiling
        self._device = x.device
        self._layout = _layout(x)

    def handles(self, dz: Tensor, x: Tensor, weight: Tensor | None, residual: Tensor | None) -> bool:
        """Whether backward may use the kernels: saved-tensor hooks may have changed saved tensors."""
        return (
            is_dense(x)
            and _layout(x) == self._layout
            and all(
                is_readable(values) and (values.shape, values.device) == (x.shape, x.device)
                for values in (dz, residual)
                if values is not None
            )
            and _is_per_channel(weight, x)
        )

    def local_sums(self, x: Tensor, w: Tensor | None) -> Tensor:
        tiling = self._tiling
        values: Tensor | int = tiling.outer * tiling.inner
        if w is not None:
            values = w.double().sum() * (values / max(w.numel(), 1))
        sums = self._doubles(2 * tiling.channels + 1)
        self._sum_tiles("sums", sums, None, x, _flat(w, x))
        sums[-1].fill_(values)
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
        """See `_arithmetic.normalise`. eps is rounded to float32."""
        channels = self._tiling.channels
        z, saved = torch.empty_like(x), SavedScaling(self._doubles(4, channels), self._floats(3, channels))
        self._each_channel("coefficients", sums, _contiguous(weight), _contiguous(bias), *saved, eps)
        residual = None if residual is None else like(x, residual)
        self._each_tile("normalise", x, residual, z, saved.narrow, slope=_slope(activation))
        return z, Moments(saved.wide[0], saved.wide[1], sums[-1]), saved

    def local_gradient_sums(
        self,
        dz: Tensor,
        x: Tensor,
        saved: SavedScaling,
        residual: Tensor | None,
        activation: Activation | None,
    ) -> LocalGradients:
        """Returns the sums and dy. Computes dy only with a residual, whose gradient it is; else dy is dz."""
        dz, sums = like(x, dz), self._doubles(2 * self._tiling.channels)
        residual = None if residual is None or activation is None else like(x, residual)
        dy = dz if residual is None else torch.empty_like(x)
        tensors = dz, x, residual, dy, saved.narrow
        self._sum_tiles("gradient_sums", sums, saved.wide, *tensors, slope=_slope(activation))
        return LocalGradients(sums, dy, activation if residual is None else None)

    def input_gradient(
        self,
        local: LocalGradients,
        x: Tensor,
        saved: SavedScaling,
        n: Tensor,
        weight: Tensor | None,
        sums: Tensor,
        w: Tensor | None,
    ) -> Tensor:
        dx, factors = torch.empty_like(x), self._floats(3, self._tiling.channels)
        self._each_channel("gradient_coefficients", sums, n, _contiguous(weight), saved.wide, factors)
        tensors = local.dy, x, _flat(w, x), dx, saved.narrow, factors
        self._each_tile("input_gradient", *tensors, slope=_slope(local.pending_activation))
        return dx

    def _each_tile(self, kernel: str, *tensors: Tensor | None, slope: float | None) -> None:
        tiling = self._tiling
        self._launch(
            kernel, tiling.tiles * tiling.blocks, *tensors, *tiling.sizes, slope=slope, **tiling.tile
        )

    def _each_channel(self, kernel: str, *arguments: Any) -> None:
        programs, columns = self._programs_for_channels(), _CHANNELS_A_PROGRAM
        self._launch(kernel, programs, *arguments, self._tiling.channels, columns=columns)

    def _sum_tiles(
        self, kernel: str, sums: Tensor, wide: Tensor | None, *tensors: Tensor | None, **constants: Any
    ) -> None:
        """Stores the kernel's two sums per channel in `sums`. wide: see `add_parts`."""
        tiling, splits = self._tiling, self._tiling.splits
        parts = self._doubles(splits, 2, tiling.channels)
        arguments = *tensors, parts, *tiling.sizes, tiling.tiles, splits
        self._launch(kernel, splits * tiling.blocks, *arguments, **constants, **tiling.tile)
        self._launch(
            "add_parts",
            self._programs_for_channels(),
            *(parts, wide, sums, tiling.channels, splits),
            rows=_PARTS_AT_ONCE,
            columns=_CHANNELS_A_PROGRAM,
        )

    def _programs_for_channels(self) -> int:
        return _divided(self._tiling.channels, _CHANNELS_A_PROGRAM)

    def _launch(self, kernel: str, programs: int, *arguments: Any, **constants: Any) -> None:
        _launch(self._device, kernel, programs, *arguments, **constants)

    def _doubles(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=self._device)

    def _floats(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self._device)


def passes(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, residual: Tensor | None = None
) -> Passes | None:
    """Returns the passes for x; None if the kernels do not support a type, device, dtype, strides or size."""
    if x.device.type not in _DEVICES or x.dtype not in _DTYPES or not is_dense(x):
        return None
    if not (_is_per_channel(weight, x) and _is_per_channel(bias, x)):
        return None
    if residual is not None and not (
        is_readable(residual) and (residual.shape, residual.device) == (x.shape, x.device)
    ):
        return None
    tiling = _tiling(x)
    return None if tiling is None or not _works_on(x.device) else Passes(x, tiling)


def update_running_statistics(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    momentum: float | None,
    moments: Moments,
) -> bool:
    """Does the update of `_arithmetic`. Returns False, without any change, if the kernel cannot do it.

    It needs all three buffers, contiguous on the moments' GPU: float32 statistics and an int64 counter.
    """
    mean, var, n = moments
    if mean.device.type not in _DEVICES or running_mean is None or running_var is None or batches is None:
        return False
    statistics = running_mean, running_var
    if not (
        all(_is_buffer(values, mean, torch.float32) for values in statistics)
        and all(_is_buffer(values, mean, torch.float64) for values in (mean, var))
        and _is_buffer(batches, n, torch.int64)
        and _works_on(mean.device)
    ):
        return False
    tensors, share = (mean, var, n, batches, *statistics), -1.0 if momentum is None else float(momentum)
    _launch(mean.device, "update", 1, *tensors, share, len(mean), columns=_CHANNELS_OF_UPDATE)
    torch.autograd.graph.increment_version((*statistics, batches))
    return True


def _is_buffer(values: Tensor, like: Tensor, dtype: torch.dtype) -> bool:
    return (
        is_dense(values)
        and values.is_contiguous()
        and (values.shape, values.device, values.dtype) == (like.shape, like.device, dtype)
    )


def _tiling(x: Tensor) -> Tiling | None:
    samples, channels = x.shape[:2]
    values = x.numel()
    if not 0 < values <= _MOST_VALUES:
        return None
    inner = values // (samples * channels)
    if x.is_contiguous():
        return Tiling.of(samples, channels, inner)
    return Tiling.of(samples * inner, channels, 1) if is_channels_last(x) else None


def _works_on(device: torch.device) -> bool:
    """Whether the kernels run there. Not asked for the first time while a CUDA graph is captured."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _tried.get(device, False)
    if device not in _tried:
        _tried[device] = _gives_what_torch_gives(device)
    return _tried[device]


_tried: dict[torch.device, bool] = {}


def _gives_what_torch_gives(device: torch.device) -> bool:
    """Tries the kernels on a few values and waits for the device. Warns if Triton cannot run them there."""
    if find_spec("triton") is None:
        return False
    x = torch.arange(96, device=device, dtype=torch.float32).sin().view(3, 4, 8)
    try:
        ours, expected = _all_passes(Passes(x, Tiling.of(3, 4, 8)), x), _all_passes(_arithmetic, x)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    except Exception as error:  # Triton raises what its compilers and drivers raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        warnings.warn(
            f"sync_bn computes with torch's operations on {device}, which is slower, because its Triton "
            f"kernels do not work there: {reason}",
            stacklevel=2,
        )
        return False
    return True


def _all_passes(passes: Any, x: Tensor) -> tuple[Tensor, ...]:
    sums = passes.local_sums(x, None)
    z, moments, saved = passes.normalise(x, sums, 1e-5, None, None, None, None)
    local = passes.local_gradient_sums(x * x, x, saved, None, None)
    return sums, z, passes.input_gradient(local, x, saved, moments.n, None, local.sums, None)


def _launch(device: torch.device, kernel: str, programs: int, *arguments: Any, **constants: Any) -> None:
    with torch.accelerator.device_index(device.index):  # Triton launches on the current device
        launch = getattr(_kernels(), kernel)[(programs,)]
        launch(*arguments, **constants, num_warps=_WARPS, enable_fp_fusion=False)


@cache
def _kernels() -> Any:
    """Returns the module of the kernels. Triton is imported on first use."""
    from sync_bn import _triton_kernels

    return _triton_kernels


def _layout(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.stride(), x.dtype, x.device


def _is_per_channel(values: Tensor | None, x: Tensor) -> bool:
    return values is None or (
        is_readable(values) and (values.shape, values.device) == (x.shape[1:2], x.device)
    )


def _contiguous(values: Tensor | None) -> Tensor | None:
    if values is None or (is_dense(values) and values.is_contiguous()):
        return values
    return torch.empty(values.shape, dtype=values.dtype, device=values.device).copy_(values)


def _flat(w: Tensor | None, x: Tensor) -> Tensor | None:
    """Returns w, (N, 1, ...), as the weights of all positions in the order of memory, float32."""
    return None if w is None else w.float().expand(len(x), 1, *x.shape[2:]).reshape(-1)


def _slope(activation: Activation | None) -> float | None:
    return 1.0 if activation is None else activation.slope


def _power_of_two(size: int) -> int:
    """Returns the smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def _divided(size: int, by: int) -> int:
    """Returns size / by, rounded up."""
    return -(-size // by)
