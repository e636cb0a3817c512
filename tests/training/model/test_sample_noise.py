from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from tests.training.fitting import OwnLightning, fit, make_spec
from tests.training.worlds import Worlds
from training.model.sample_draws import OWN, WHOLE, SampleDraws, Share
from training.model.sample_noise import SampleNoise

SAMPLES = 7
X = torch.randn(SAMPLES, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
CUTS = [(3, 4), (2, 2, 3), (1, 6), (1, 2, 4), (SAMPLES, 0)]
"""No share has as many samples as X has rows of a sample, which would be taken for the samples."""
ANY = nn.Linear(2, 2)


def on_ranks(call: Callable[[Tensor], Tensor], cut: Sequence[int], *, step: int = 2) -> list[Tensor]:
    """Returns what each rank draws; `call` gets its part of X."""
    found, first = [], 0
    for rank, samples in enumerate(cut):
        noise = SampleNoise(seed=3, rank=rank)
        with noise.step(ANY, Share(samples, 1, step, 0, first)):
            found.append(call(X[first : first + samples]))
        first += samples
    return found


def in_place(draw: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: draw(torch.empty(len(x), 3))


def sequence_first(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: call(x.transpose(0, 1)).transpose(0, 1)


def attention(*, batch_first: bool, weights: bool) -> Callable[[Tensor], Tensor]:
    layer = nn.MultiheadAttention(6, 2, dropout=0.3, batch_first=batch_first).double()

    def call(x: Tensor) -> Tensor:
        output: Tensor = layer(x, x, x, need_weights=weights)[0]
        return output

    return call if batch_first else sequence_first(call)


def stochastic_depth(x: Tensor) -> Tensor:
    return x * x.new_empty((len(x), 1, 1)).bernoulli_(0.6)


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": nn.Dropout(0.4),
    "dropout in place": lambda x: F.dropout(x.clone(), 0.4, inplace=True),
    "dropout of channels": nn.Dropout1d(0.4),
    "alpha dropout": nn.AlphaDropout(0.4),
    "alpha dropout of channels": nn.FeatureAlphaDropout(0.4),
    "dropout, sequence first": sequence_first(nn.Dropout(0.4)),
    "dropout of rows": lambda x: F.dropout(x.flatten(0, 1), 0.4).view_as(x),
    "dropout in bfloat16": lambda x: F.dropout(x.bfloat16(), 0.4),
    "stochastic depth": stochastic_depth,
    "attention": attention(batch_first=True, weights=False),
    "attention, sequence first": attention(batch_first=False, weights=False),
    "attention with weights": attention(batch_first=False, weights=True),
    "gumbel softmax": F.gumbel_softmax,
    "rand": lambda x: torch.rand(len(x), 2),
    "randn": lambda x: torch.randn((len(x), 2), dtype=torch.float64),
    "randn_like": torch.randn_like,
    "randint": lambda x: torch.randint(10, (len(x), 2)),
    "randint between": lambda x: torch.randint(low=3, high=10, size=(len(x), 2)),
    "randint_like": lambda x: torch.randint_like(x, 3, 10),
    "normal": lambda x: torch.normal(x, 0.5),
    "normal of a size": lambda x: torch.normal(1.0, 0.5, (len(x), 2)),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli_ with probabilities": lambda x: torch.empty_like(x).bernoulli_(x.sigmoid()),
    "exponential_": in_place(lambda x: x.exponential_()),
    "normal_": in_place(lambda x: x.normal_(1, 2)),
    "random_": in_place(lambda x: x.random_(100)),
    "uniform_": in_place(lambda x: x.uniform_(2, 3)),
    "a distribution": lambda x: torch.distributions.Normal(x, 1.0).rsample(),
    "one number for the batch": lambda x: x * torch.rand(()),
    "one number in a vector": lambda x: x * torch.rand(1),
    "two draws": lambda x: F.dropout(torch.randn_like(x)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_shares_of_any_sizes_draw_together_what_the_whole_batch_draws(name: str) -> None:
    (whole,) = on_ranks(DRAWS[name], (SAMPLES,))
    (again,) = on_ranks(DRAWS[name], (SAMPLES,), step=3)

    for cut in CUTS:
        torch.testing.assert_close(torch.cat(on_ranks(DRAWS[name], cut)), whole, rtol=1e-12, atol=1e-12)
    assert not torch.equal(whole, again)


class Watched(Tensor):
    """A subclass with functions of its own, as MONAI's MetaTensor, which copes with some of torch's alone."""

    seen: ClassVar[list[object]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def test_a_subclass_of_tensor_has_to_do_with_what_is_called_alone() -> None:
    weight = nn.Parameter(torch.ones(6, dtype=torch.float64))

    called = {torch.empty_like, Tensor.is_complex, Tensor.mul, Tensor.sum, Tensor.backward}

    def step(x: Tensor) -> Tensor:
        Watched.seen.clear()
        drawn = torch.rand_like(x.as_subclass(Watched))
        assert type(drawn) is Watched
        (drawn * weight).sum().backward()  # type: ignore[no-untyped-call]
        assert set(Watched.seen) <= called
        return drawn.as_subclass(Tensor)

    assert torch.equal(torch.cat(on_ranks(step, (3, 4))), *on_ranks(torch.rand_like, (SAMPLES,)))


def test_samples_and_draws_of_a_step_differ() -> None:
    (drawn,) = on_ranks(lambda x: torch.cat([torch.randn(len(x), 3), torch.randn(len(x), 3)]), (SAMPLES,))

    assert len({tuple(row) for row in drawn.tolist()}) == 2 * SAMPLES


def test_a_draw_that_needs_many_generators_is_that_of_the_whole_batch() -> None:
    def wide(x: Tensor) -> Tensor:
        return torch.rand(len(x), 3000)

    (whole,) = on_ranks(wide, (SAMPLES,))

    assert torch.equal(torch.cat(on_ranks(wide, (3, 4))), whole)


class Case:
    """The dimension that is found in a shape, with so many samples."""

    def __init__(self, samples: int, shape: tuple[int, ...], found: int, *, made: bool = False) -> None:
        self.samples, self.shape, self.found, self.made = samples, shape, found, made


@pytest.mark.parametrize(
    "case",
    [
        Case(4, (4, 9), 0),
        Case(4, (4, 4, 4), 0),
        Case(4, (9, 4, 8), 1),
        Case(4, (8, 4, 5), 1),
        Case(4, (4 * 3, 4), 0),
        Case(4, (9, 4), 1),
        Case(4, (12, 5, 5), 0),
        Case(4, (9, 5), OWN),
        Case(4, (1, 9, 5), WHOLE),
        Case(4, (), WHOLE),
        Case(4, (9, 5), WHOLE, made=True),
        Case(4, (12, 5), 0, made=True),
        Case(4, (12,), WHOLE, made=True),
        Case(4, (4,), 0, made=True),
        Case(4, (8, 3), WHOLE, made=True),  # as the weight of the module
        Case(4, (1,), WHOLE, made=True),
        Case(1, (1, 9), 0),
        Case(1, (9, 5), 0),
        Case(1, (1,), WHOLE, made=True),
        Case(1, (1, 1, 1), 0, made=True),
        Case(1, (8, 3), WHOLE, made=True),
        Case(0, (0, 9), WHOLE),
        Case(0, (9, 5), WHOLE),
    ],
    ids=lambda case: f"{case.samples} in {case.shape}{' made' * case.made}",
)
def test_the_dimension_of_the_samples_follows_from_the_shape(case: Case) -> None:
    draws = SampleDraws(seed=0, rank=0)
    draws.begin(nn.Linear(3, 8), Share(case.samples, 0, 0, 0, 0))

    assert draws.dimension(torch.empty(case.shape), made=case.made) == case.found


def test_parameters_have_the_same_noise_on_all_ranks() -> None:
    weight = nn.Parameter(torch.ones(4, 4))  # as many rows as a rank has samples

    dropped = on_ranks(lambda _: F.dropout(weight).detach(), (3, 4))
    drawn = on_ranks(lambda _: torch.randn_like(weight), (3, 4))

    assert torch.equal(*dropped)
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.poisson(torch.full((2, 9), 4.0, dtype=x.dtype)),
        lambda _: F.dropout(torch.ones(97, 5)),
        lambda _: nn.LSTM(3, 3, 2, dropout=0.5)(torch.ones(5, 4, 3))[0].detach(),
    ],
    ids=["a function that is not covered", "no dimension of samples", "an LSTM"],
)
def test_what_is_not_covered_differs_between_ranks_and_steps(call: Callable[[Tensor], Tensor]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [each for step in (2, 3) for each in on_ranks(call, (3, 4), step=step)]

    assert len({tuple(each.flatten().tolist()) for each in drawn}) == 4


def test_an_uncovered_draw_does_not_shift_covered_ones() -> None:
    def both(x: Tensor) -> Tensor:
        torch.poisson(torch.ones(len(x), 50))
        return torch.rand(len(x), 2)

    (whole,) = on_ranks(both, (SAMPLES,))

    assert torch.equal(torch.cat(on_ranks(both, (3, 4))), whole)


def test_seeds_and_generators_of_the_users_own_count() -> None:
    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(5)
        return torch.rand(len(x), 2)

    def own(x: Tensor) -> Tensor:
        return torch.rand(len(x), 2, generator=torch.Generator().manual_seed(5))

    expected = own(X)

    for call in (seeded, own):
        assert torch.equal(on_ranks(call, (SAMPLES,))[0], expected)


def test_the_generator_goes_on_after_a_step_from_where_it_was() -> None:
    before = torch.get_rng_state()

    on_ranks(lambda x: torch.poisson(F.dropout(x).abs()), (SAMPLES,))

    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_keeps_the_mean_and_alpha_dropout_the_variance_too() -> None:
    x = torch.randn(SAMPLES, 20_000, generator=torch.Generator().manual_seed(2))

    (dropped,) = on_ranks(lambda _: F.dropout(x + 1, 0.3), (SAMPLES,))
    (alpha,) = on_ranks(lambda _: F.alpha_dropout(x, 0.3, training=True), (SAMPLES,))

    assert float((dropped == 0).double().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)
    assert float(alpha.mean()) == pytest.approx(0, abs=0.02)
    assert float(alpha.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.1}, {"enable_gqa": True}, "mask"])
def test_weights_of_attention_are_dropped_or_scaled(options: Any) -> None:
    query, key = torch.randn(2, SAMPLES, 4, 5, 6, dtype=torch.float64)
    if options == "mask":
        options = {"attn_mask": torch.rand(5, 5) < 0.5}
        options["attn_mask"][0] = False  # no weights at all
    if "enable_gqa" in options:
        key = key[:, :2]
    value = torch.eye(5, dtype=torch.float64).expand(*key.shape[:-1], 5)
    whole = F.scaled_dot_product_attention(query, key, value, **options)

    (weights,) = on_ranks(
        lambda _: F.scaled_dot_product_attention(query, key, value, dropout_p=0.2, **options), (SAMPLES,)
    )

    kept = weights != 0
    torch.testing.assert_close(weights[kept], whole[kept] / 0.8)
    assert 0.1 < 1 - float(kept.sum() / (whole != 0).sum()) < 0.3


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_computes_again_with_the_same_noise(*, use_reentrant: bool) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6), nn.Dropout(0.5)).double()

    def gradient(call: Callable[[Tensor], Tensor], *, within_step: bool) -> Tensor:
        noise = SampleNoise(seed=3, rank=0)
        x = X.clone().requires_grad_()
        with noise.step(layers, Share(SAMPLES, 1, 2, 0, 0)):
            F.dropout(x)
            loss = call(x).square().sum()
            torch.poisson(torch.ones(3))
            if within_step:
                loss.backward()  # type: ignore[no-untyped-call]
        if not within_step:
            with noise.backward():
                loss.backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return x.grad

    def again(x: Tensor) -> Tensor:
        output: Tensor = checkpoint(layers, x, use_reentrant=use_reentrant)
        return output

    expected = gradient(layers, within_step=False)

    for within_step in (True, False):
        assert torch.equal(gradient(again, within_step=within_step), expected)


def modes() -> int:
    return len(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def test_without_noise_there_is_no_mode_after_the_first_step_until_something_draws() -> None:
    noise = SampleNoise(seed=3, rank=0)
    found: list[int] = []

    def step(call: Callable[[Tensor], Tensor]) -> None:
        with noise.step(ANY, Share(SAMPLES, 0, len(found), 0, 0)):
            call(X)
            found.append(modes())
        with noise.backward():
            found.append(modes())

    for call in (torch.relu, torch.relu, F.dropout, torch.relu, torch.relu):
        step(call)

    assert found == [1, 1, 0, 0, 0, 0, 1, 1, 0, 0]
    assert modes() == 0


def test_a_dropout_that_does_not_draw_yet_keeps_the_mode() -> None:
    noise = SampleNoise(seed=3, rank=0)

    with noise.step(ANY, Share(SAMPLES, 0, 0, 0, 0)):
        F.dropout(X, 0.0)
        F.dropout(X, training=False)

    assert noise.is_used


def test_a_rank_without_samples_does_not_decide_that_nothing_draws() -> None:
    noise = SampleNoise(seed=3, rank=0)

    with noise.step(ANY, Share(0, 0, 0, 0, 0)):
        pass

    assert noise.is_used


def test_compiled_modules_are_left_alone() -> None:
    compiled: Any = torch.compile(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)).double(), backend="eager")
    noise = SampleNoise(seed=3, rank=0)

    with noise.step(nn.Sequential(compiled), Share(SAMPLES, 0, 0, 0, 0)):
        found = modes()

    assert found == 0


class Noisy(OwnLightning):
    """Steps by hand, with noise of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.body.between = nn.Sequential(nn.Dropout1d(0.2), Again())

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        optimizer: Any = self.optimizers()
        for _ in range(2):
            loss = super().training_step(batch, index) * (1 + torch.rand(1))
            loss = loss + (torch.randn(len(batch[0]), 2) * torch.randint(1, 3, (len(batch[0]), 1))).mean()
            optimizer.zero_grad()
            self.manual_backward(loss.nan_to_num())
            optimizer.step()
        return loss


class Again(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = checkpoint(self.layers, x, use_reentrant=False)
        return output


def losses(rank: int) -> dict[int, float]:
    return dict(fit(rank, make_spec(max_epochs=1, accumulate_grad_batches=1), Noisy).history["train_loss"])


def test_a_module_that_steps_by_hand_has_one_curve_on_1_to_3_workers(worlds: Worlds) -> None:
    expected, *_ = worlds.run(1, losses)

    assert len(expected) == math.ceil(22 / 7)
    for workers in (2, 3):
        assert worlds.run(workers, losses)[0] == pytest.approx(expected, rel=1e-9)
