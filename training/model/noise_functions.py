"""Functions of torch that draw, each with what draws in its place for the samples of a batch.

What takes a generator of the user's, or `out`, draws as it would anywhere. A probability of 0 or 1 draws
nothing. Functions that draw by a distribution for each element (multinomial, poisson) are not covered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from training.model.sample_draws import Fill, SampleDraws
from training.rng_internals import safe_softmax

_SELU_MINIMUM = -1.7580993408473766
"""-λα of SELU (Klambauer et al. 2017)."""

Function = Callable[..., Tensor]


def _dropout(draws: SampleDraws, function: Function, input: Tensor, p: float, train: bool) -> Tensor:
    if not _draws(p, train):
        return function(input, p, train)
    return _dropped(draws, function, input, p, input.shape)


def _functional_dropout(
    draws: SampleDraws,
    function: Function,  # noqa: ARG001 - as the others
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor:
    return _dropout(draws, torch.dropout_ if inplace else torch.dropout, input, p, training)


def _feature_dropout(draws: SampleDraws, function: Function, input: Tensor, p: float, train: bool) -> Tensor:
    if not _draws(p, train) or input.dim() < 2:
        return function(input, p, train)
    return _dropped(draws, function, input, p, _of_features(input))


def _dropped(draws: SampleDraws, function: Function, x: Tensor, p: float, shape: torch.Size) -> Tensor:
    """Dropout by numbers of `shape`."""
    numbers = draws.uniform_for(draws.next_index(), x, shape)
    if numbers is None:
        return function(x, p, True)
    scale = 1 / (1 - p)
    times = Tensor.mul_ if function in _IN_PLACE else torch.mul
    if x.is_cpu:  # faster with numbers of one dtype
        return times(x, numbers.lt_(1 - p).mul_(scale).to(x.dtype))
    return times(x, numbers < 1 - p).mul_(scale)  # keeps a byte for each number until the backward pass


def _alpha_dropout(draws: SampleDraws, function: Function, input: Tensor, p: float, train: bool) -> Tensor:
    if not _draws(p, train):
        return function(input, p, train)
    return _alpha_dropped(draws, function, input, p, input.shape)


def _feature_alpha_dropout(
    draws: SampleDraws, function: Function, input: Tensor, p: float, train: bool
) -> Tensor:
    if not _draws(p, train) or input.dim() < 2:
        return function(input, p, train)
    return _alpha_dropped(draws, function, input, p, _of_features(input))


def _alpha_dropped(draws: SampleDraws, function: Function, x: Tensor, p: float, shape: torch.Size) -> Tensor:
    """a (x d + α'(1 - d)) + b, where d is 1 for what is kept: mean and variance stay (Klambauer et al. 2017).

    With q = 1 - p, a = (q + α'² q p)^(-1/2) and b = -a p α'.
    """
    numbers = draws.uniform_for(draws.next_index(), x, shape)
    if numbers is None:
        return function(x, p, True)
    q, least = 1 - p, _SELU_MINIMUM
    kept = (numbers < q).to(x.dtype)
    a = (q + least**2 * q * p) ** -0.5
    factor, rest = kept * a, (1 - kept).mul_(a * least).sub_(a * p * least)
    return x.mul_(factor).add_(rest) if function in _IN_PLACE else x * factor + rest


def _draws(p: float, train: bool) -> bool:
    return train and 0 < p < 1


def _of_features(x: Tensor) -> torch.Size:
    return torch.Size([*x.shape[:2], *[1] * (x.dim() - 2)])


def _attention(
    draws: SampleDraws,
    function: Function,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q kᵀ s + mask), with Dropout, times v: as torch's kernels for CPUs compute it.

    Those of GPUs draw on each rank for itself, because they never hold all weights at once.
    """
    options = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if not 0 < dropout_p < 1:
        return function(query, key, value, dropout_p=dropout_p, **options)
    index = draws.next_index()
    shape = torch.Size([*query.shape[:-1], key.shape[-2]])
    numbers = draws.uniform_for(index, query, shape) if query.is_cpu else None
    if numbers is None:
        return function(query, key, value, dropout_p=dropout_p, **options)
    dtype = query.dtype
    if dtype in (torch.float16, torch.bfloat16):
        query, key, value = query.float(), key.float(), value.float()
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.mT
    if is_causal:
        attn_mask = torch.ones(shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        is_bool = attn_mask.dtype is torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if is_bool else scores + attn_mask
    weights = safe_softmax(scores) * numbers.lt_(1 - dropout_p).to(scores.dtype).div_(1 - dropout_p)
    return (weights @ value).to(dtype)


def _in_place(
    draws: SampleDraws, function: Function, x: Tensor, *args: Any, generator: Any = None, **kwargs: Any
) -> Tensor:
    """A method that draws a tensor in place."""
    if generator is not None or x.is_sparse:
        return function(x, *args, generator=generator, **kwargs)
    index = draws.next_index()
    probabilities = args[0] if args else kwargs.get("p")
    if function is Tensor.bernoulli_ and isinstance(probabilities, Tensor):
        return x.copy_(_uniform(draws, index, x) < probabilities)
    drawn = torch.empty_like(x, memory_format=torch.contiguous_format) if _needs_copy(x) else x
    draws.fill(index, drawn, lambda part, own: function(part, *args, generator=own, **kwargs), like=x)
    return x if drawn is x else x.copy_(drawn)


def _needs_copy(x: Tensor) -> bool:
    return x.requires_grad or not x.is_contiguous()


def _uniform(draws: SampleDraws, index: int, x: Tensor) -> Tensor:
    numbers = torch.empty(x.shape, device=x.device, dtype=torch.float32)
    draws.fill(index, numbers, _uniform_, like=x)
    return numbers


def _created(
    create: Function,
    fill: Any,
    draws: SampleDraws,
    function: Function,
    *args: Any,
    generator: Any = None,
    out: Any = None,
    **kwargs: Any,
) -> Tensor:
    """A function that creates a tensor by its shape or by another, filled with random numbers."""
    if generator is not None or out is not None:
        given = {"generator": generator, "out": out}
        return function(*args, **{name: what for name, what in given.items() if what is not None}, **kwargs)
    index = draws.next_index()
    created: Tensor = create(*args, **kwargs)
    if created.is_complex():
        return function(*args, **kwargs)
    draws.fill(index, created, fill, like=args[0] if args else None)
    return created


def _randint(draws: SampleDraws, function: Function, *args: Any, **kwargs: Any) -> Tensor:
    """torch.randint([low,] high, size)."""
    options = dict(kwargs)
    *bounds, size = args if "size" not in options else (*args, options.pop("size"))
    low, high = _bounds(bounds, options)
    create = partial(torch.empty, dtype=torch.int64)
    return _created(create, _random(low, high), draws, partial(function, low, high), size, **options)


def _randint_like(
    draws: SampleDraws, function: Function, input: Tensor, *bounds: Any, **kwargs: Any
) -> Tensor:
    """torch.randint_like(input, [low,] high)."""
    options = dict(kwargs)
    low, high = _bounds(bounds, options)
    given = lambda x, **others: function(x, low, high, **others)  # noqa: E731
    return _created(torch.empty_like, _random(low, high), draws, given, input, **options)


def _bounds(args: Sequence[Any], options: dict[str, Any]) -> tuple[Any, Any]:
    """Returns the bounds in positional arguments and in options, from which they are taken out."""
    low = options.pop("low", 0)
    if "high" in options:
        return (args[0] if args else low), options.pop("high")
    return (low, *args)[-2:]


def _random(low: int, high: int) -> Fill:
    return lambda made, generator: made.random_(low, high, generator=generator)


def _normal(
    draws: SampleDraws, function: Function, mean: Any, std: Any = 1.0, *size: Any, **kwargs: Any
) -> Tensor:
    """torch.normal of two numbers and a size, or where one or both are tensors."""
    tensors = [each for each in (mean, std) if isinstance(each, Tensor)]
    if not tensors:
        fill = lambda made, generator: made.normal_(mean, std, generator=generator)  # noqa: E731
        return _created(torch.empty, fill, draws, partial(function, mean, std), *size, **kwargs)
    if kwargs:
        return function(mean, std, *size, **kwargs)
    drawn = tensors[0].new_empty(torch.add(mean, std).shape)
    draws.fill(draws.next_index(), drawn, _normal_, like=tensors[0])
    with torch.no_grad():
        return drawn.mul_(std).add_(mean)


def _bernoulli(
    draws: SampleDraws, function: Function, input: Tensor, p: float | None = None, **kwargs: Any
) -> Tensor:
    """Ones with the probabilities `input`, or with the probability p."""
    if kwargs:
        return function(input, *([] if p is None else [p]), **kwargs)
    return (_uniform(draws, draws.next_index(), input) < (input if p is None else p)).to(input.dtype)


_IN_PLACE = {torch.dropout_, torch.feature_dropout_, torch.alpha_dropout_, torch.feature_alpha_dropout_}
_uniform_: Fill = lambda made, generator: made.uniform_(generator=generator)  # noqa: E731
_normal_: Fill = lambda made, generator: made.normal_(generator=generator)  # noqa: E731

FUNCTIONS: dict[Function, Function] = {
    F.dropout: _functional_dropout,
    torch.dropout: _dropout,
    torch.dropout_: _dropout,
    torch.feature_dropout: _feature_dropout,
    torch.feature_dropout_: _feature_dropout,
    torch.alpha_dropout: _alpha_dropout,
    torch.alpha_dropout_: _alpha_dropout,
    torch.feature_alpha_dropout: _feature_alpha_dropout,
    torch.feature_alpha_dropout_: _feature_alpha_dropout,
    F.scaled_dot_product_attention: _attention,
    torch.rand: partial(_created, torch.empty, _uniform_),
    torch.randn: partial(_created, torch.empty, _normal_),
    torch.rand_like: partial(_created, torch.empty_like, _uniform_),
    torch.randn_like: partial(_created, torch.empty_like, _normal_),
    torch.randint: _randint,
    torch.randint_like: _randint_like,
    torch.normal: _normal,
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    **dict.fromkeys(
        (
            Tensor.bernoulli_,
            Tensor.cauchy_,
            Tensor.exponential_,
            Tensor.geometric_,
            Tensor.log_normal_,
            Tensor.normal_,
            Tensor.random_,
            Tensor.uniform_,
        ),
        _in_place,
    ),
}
"""By function; called with the draws, the function, and its arguments."""
