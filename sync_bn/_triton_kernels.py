"""The four passes over the data, and the running statistics, as Triton kernels for GPUs. Needs Triton.

A tensor (N, C, ...) is treated as outer x channels x inner values, as by the loops for CPUs: (N, C, S) if it
is contiguous, (N*S, C, 1) if it is channels_last. A tile has columns x rows x width of them: channels,
samples, and values of a channel; `blocks` tiles side by side have all channels, and `across` tiles all
values of a sample's channel. A pass reads each tile once.

Within a tile computations and sums are in float32. Sums over tiles are in float64, about ten operations for
each tile and channel: a GPU for consumers does one in the time of 64 in float32. There are no atomic
operations: a program stores the sums of its tiles, and `add_parts` adds those of all programs in one order,
so no result depends on which program is first.
"""

import triton
import triton.language as tl


@triton.jit
def _place(tile, block, across, rows: tl.constexpr, columns: tl.constexpr, width: tl.constexpr):
    """Returns the indices of a tile's samples, channels and values, each broadcastable over the tile."""
    n = tile // across * rows + tl.arange(0, rows)
    c = block * columns + tl.arange(0, columns)
    s = tile % across * width + tl.arange(0, width)
    return n[None, :, None], c[:, None, None], s[None, None, :]


@triton.jit
def _total(values):
    """Returns the sums over a tile, (columns,)."""
    return tl.sum(tl.sum(values, 2), 1)


@triton.jit
def _scaled(values, c, channels, narrow):
    """Returns values - shift and y = (values - shift)*scale + offset."""
    known = c < channels
    d = values - tl.load(narrow + c, known, other=0.0)
    scale = tl.load(narrow + channels + c, known, other=0.0)
    offset = tl.load(narrow + 2 * channels + c, known, other=0.0)
    # One instruction wherever it is used: forward and backward must agree on the sign of y.
    return d, tl.fma(d, tl.broadcast_to(scale, d.shape), tl.broadcast_to(offset, d.shape))


@triton.jit
def _activated(y, slope: tl.constexpr):
    """The activation of y; see `Activation`. slope 1: none."""
    if slope is None:
        y = y / (1 + tl.exp(-y))
    elif slope == 0:
        y = tl.where(y <= 0, 0.0, y)
    elif slope != 1:
        y = tl.where(y <= 0, slope * y, y)
    return y


@triton.jit
def _derived(dz, y, slope: tl.constexpr):
    """dz * activation'(y). With slope 0, infinite and NaN gradients become 0 where y <= 0, as in torch."""
    if slope is None:
        sigmoid = 1 / (1 + tl.exp(-y))
        dz = dz * sigmoid * (1 + y * (1 - sigmoid))
    elif slope == 0:
        dz = tl.where(y <= 0, 0.0, dz)
    elif slope != 1:
        dz = tl.where(y <= 0, slope * dz, dz)
    return dz


@triton.jit
def sums(
    x, w, parts, outer, channels, inner, blocks, across, tiles, splits,
    rows: tl.constexpr, columns: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """parts[split] = [sum of w*x, sum of w*x*x], (2, channels), of every splits-th tile.

    w: the weights of the values, (outer, inner); None: all 1. Each tile is summed about its own mean, so that
    no digits are lost, however far that is from 0 or from the means of other tiles.
    """
    block, split = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    total, squares = tl.zeros([columns], tl.float64), tl.zeros([columns], tl.float64)
    for tile in range(split, tiles, splits):
        n, c, s = _place(tile, block, across, rows, columns, width)
        counted = (n < outer) & (s < inner)
        inside = counted & (c < channels)
        values = tl.load(x + (n * channels + c) * inner + s, inside, other=0.0).to(tl.float32)
        if w is None:
            weights = tl.where(counted, 1.0, 0.0)
            size = _total(weights)
            count = size.to(tl.float64)
        else:
            weights = tl.load(w + n * inner + s, counted, other=0.0)
            size = _total(tl.abs(weights))
            size = tl.where(size == 0, 1.0, size)
            count = _total(weights.to(tl.float64))
        shift = _total(tl.abs(weights) * values) / size
        d = values - shift[:, None, None]
        of_d = _total(weights * d).to(tl.float64)
        of_shift = count * shift
        total += of_d + of_shift
        squares += _total(weights * d * d).to(tl.float64) + shift * (2 * of_d + of_shift)
    c = block * columns + tl.arange(0, columns)
    tl.store(parts + 2 * split * channels + c, total, c < channels)
    tl.store(parts + (2 * split + 1) * channels + c, squares, c < channels)


@triton.jit
def add_parts(parts, wide, sums, channels, splits, rows: tl.constexpr, columns: tl.constexpr):
    """sums = the sum of parts, (splits, 2, channels). With `wide` the sum of dy*d becomes that of dy*xhat."""
    c = tl.program_id(0) * columns + tl.arange(0, columns)
    known = c < channels
    first, second = tl.zeros([rows, columns], tl.float64), tl.zeros([rows, columns], tl.float64)
    for top in range(0, splits, rows):
        split = top + tl.arange(0, rows)
        inside = (split < splits)[:, None] & known[None, :]
        at = parts + 2 * split[:, None] * channels + c[None, :]
        first += tl.load(at, inside, other=0.0)
        second += tl.load(at + channels, inside, other=0.0)
    of_first, of_second = tl.sum(first, 0), tl.sum(second, 0)
    if wide is not None:
        rest = tl.load(wide + 2 * channels + c, known, other=0.0)
        invstd = tl.load(wide + 3 * channels + c, known, other=0.0)
        of_second = (of_second - rest * of_first) * invstd
    tl.store(sums + c, of_first, known)
    tl.store(sums + channels + c, of_second, known)


@triton.jit
def coefficients(sums, weight, bias, wide, narrow, eps, channels, columns: tl.constexpr):
    """wide = [mean, variance, rest, invstd], narrow = [shift, scale, offset]: see `Scaling`."""
    c = tl.program_id(0) * columns + tl.arange(0, columns)
    known = c < channels
    n = tl.load(sums + 2 * channels)
    n = tl.where(n < 1, 1.0, n)
    mean = tl.load(sums + c, known, other=0.0) / n
    variance = tl.load(sums + channels + c, known, other=0.0) / n - mean * mean
    variance = tl.where(variance < 0, 0.0, variance)
    invstd = 1 / tl.sqrt(variance + eps)
    shift = mean.to(tl.float32)
    rest = mean - shift.to(tl.float64)
    scale, offset = invstd, -rest * invstd
    if weight is not None:
        scale = invstd * tl.load(weight + c, known, other=0.0).to(tl.float64)
        offset = -rest * scale
    if bias is not None:
        offset += tl.load(bias + c, known, other=0.0).to(tl.float64)
    tl.store(wide + c, mean, known)
    tl.store(wide + channels + c, variance, known)
    tl.store(wide + 2 * channels + c, rest, known)
    tl.store(wide + 3 * channels + c, invstd, known)
    tl.store(narrow + c, shift, known)
    tl.store(narrow + channels + c, scale.to(tl.float32), known)
    tl.store(narrow + 2 * channels + c, offset.to(tl.float32), known)


@triton.jit
def normalise(
    x, residual, z, narrow, outer, channels, inner, blocks, across,
    slope: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """z = activation((x - shift)*scale + offset + residual)"""
    n, c, s = _place(tl.program_id(0) // blocks, tl.program_id(0) % blocks, across, rows, columns, width)
    inside = (n < outer) & (c < channels) & (s < inner)
    at = (n * channels + c) * inner + s
    _, y = _scaled(tl.load(x + at, inside, other=0.0).to(tl.float32), c, channels, narrow)
    if residual is not None:
        y += tl.load(residual + at, inside, other=0.0).to(tl.float32)
    tl.store(z + at, _activated(y, slope).to(z.dtype.element_ty), inside)


@triton.jit
def gradient_sums(
    dz, x, residual, dy, narrow, parts, outer, channels, inner, blocks, across, tiles, splits,
    slope: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """parts[split] = [sum of dy, sum of dy*d], (2, channels), of every splits-th tile, where d = x - shift.

    dy = dz * activation'. With a residual, stores dy, which is its gradient.
    """
    block, split = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    of_dy, of_dy_d = tl.zeros([columns], tl.float64), tl.zeros([columns], tl.float64)
    for tile in range(split, tiles, splits):
        n, c, s = _place(tile, block, across, rows, columns, width)
        inside = (n < outer) & (c < channels) & (s < inner)
        at = (n * channels + c) * inner + s
        g = tl.load(dz + at, inside, other=0.0).to(tl.float32)
        d, y = _scaled(tl.load(x + at, inside, other=0.0).to(tl.float32), c, channels, narrow)
        if residual is not None:
            y += tl.load(residual + at, inside, other=0.0).to(tl.float32)
        g = _derived(g, y, slope)
        if residual is not None:
            tl.store(dy + at, g.to(dy.dtype.element_ty), inside)
        of_dy += _total(g).to(tl.float64)
        of_dy_d += _total(g * d).to(tl.float64)
    c = block * columns + tl.arange(0, columns)
    tl.store(parts + 2 * split * channels + c, of_dy, c < channels)
    tl.store(parts + (2 * split + 1) * channels + c, of_dy_d, c < channels)


@triton.jit
def gradient_coefficients(sums, count, weight, wide, factors, channels, columns: tl.constexpr):
    """factors = [a, b, c] of `_arithmetic.input_gradient`, in float32."""
    c = tl.program_id(0) * columns + tl.arange(0, columns)
    known = c < channels
    n = tl.load(count)
    n = tl.where(n < 1, 1.0, n)
    invstd = tl.load(wide + 3 * channels + c, known, other=0.0)
    a = invstd
    if weight is not None:
        a = invstd * tl.load(weight + c, known, other=0.0).to(tl.float64)
    b = -a * invstd * (tl.load(sums + channels + c, known, other=0.0) / n)
    rest = tl.load(wide + 2 * channels + c, known, other=0.0)
    constant = -b * rest - a * (tl.load(sums + c, known, other=0.0) / n)
    tl.store(factors + c, a.to(tl.float32), known)
    tl.store(factors + channels + c, b.to(tl.float32), known)
    tl.store(factors + 2 * channels + c, constant.to(tl.float32), known)


@triton.jit
def input_gradient(
    dz, x, w, dx, narrow, factors, outer, channels, inner, blocks, across,
    slope: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """dx = a*dy + w*(b*(x - shift) + c), dy = dz * activation'. w: None, or (outer, inner)."""
    n, c, s = _place(tl.program_id(0) // blocks, tl.program_id(0) % blocks, across, rows, columns, width)
    known = c < channels
    inside = (n < outer) & known & (s < inner)
    at = (n * channels + c) * inner + s
    g = tl.load(dz + at, inside, other=0.0).to(tl.float32)
    d, y = _scaled(tl.load(x + at, inside, other=0.0).to(tl.float32), c, channels, narrow)
    g = _derived(g, y, slope)
    b = tl.load(factors + channels + c, known, other=0.0)
    of_batch = b * d + tl.load(factors + 2 * channels + c, known, other=0.0)
    if w is not None:
        of_batch *= tl.load(w + n * inner + s, (n < outer) & (s < inner), other=0.0)
    a = tl.load(factors + c, known, other=0.0)
    tl.store(dx + at, (a * g + of_batch).to(dx.dtype.element_ty), inside)


@triton.jit
def update(
    mean, variance, count, batches, running_mean, running_var, momentum, channels, columns: tl.constexpr
):
    """The update of `_arithmetic.update_running_statistics`. momentum < 0: the average of all batches.

    By one program: each channel needs the number of batches from before it is increased.
    """
    n = tl.load(count)
    number = tl.load(batches) + tl.where(n > 0, 1, 0)
    share = tl.where(momentum < 0, 1 / number.to(tl.float64), momentum)
    share = tl.where(n > 0, share, 0.0)
    unbiased = tl.where(n > 1, n / tl.where(n > 1, n - 1, 1.0), 1.0)
    for first in range(0, channels, columns):
        c = first + tl.arange(0, columns)
        known = c < channels
        old_mean = tl.load(running_mean + c, known, other=0.0).to(tl.float64)
        old_var = tl.load(running_var + c, known, other=0.0).to(tl.float64)
        new_mean = tl.load(mean + c, known, other=0.0)
        new_var = tl.load(variance + c, known, other=0.0) * unbiased
        tl.store(running_mean + c, (old_mean + share * (new_mean - old_mean)).to(tl.float32), known)
        tl.store(running_var + c, (old_var + share * (new_var - old_var)).to(tl.float32), known)
    tl.store(batches, number)
