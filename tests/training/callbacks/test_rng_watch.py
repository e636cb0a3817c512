from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.checkpoint import checkpoint

from tests.training.fitting import Fitted, OwnLightning, Small, fit, make_spec, nan_in_layer, small
from tests.training.worlds import Worlds
from training.callbacks.rng_watch import RngWatch
from training.model.sample_noise import SampleNoise
from training.tracking.tracker import NullTracker

CONSEQUENCE = "curves on different numbers of workers will agree statistically, not exactly"


class Tags(NullTracker):
    def __init__(self) -> None:
        self.found: list[Mapping[str, str]] = []

    def tags(self, tags: Mapping[str, str]) -> None:
        self.found.append(tags)


def has_hooks() -> bool:
    return bool(_has_any_global_hook())  # type: ignore[no-untyped-call]


class Hooked(Callback):
    """Records in which batches, and whether at the end, torch had global module hooks."""

    def __init__(self) -> None:
        self.batches: list[bool] = []

    def on_before_backward(self, *_: Any) -> None:
        self.batches.append(has_hooks())


@dataclass(frozen=True, kw_only=True)
class Watched:
    tags: list[Mapping[str, str]]
    printed: str
    hooked: list[bool]
    hooked_afterwards: bool
    fitted: Fitted
    random_state: Tensor


def watch(rank: int, make_model: Callable[[], nn.Module], *, watching: bool = True) -> Watched:
    tags, hooked, printed = Tags(), Hooked(), io.StringIO()
    noise = SampleNoise(seed=0, rank=rank)
    with redirect_stdout(printed):
        callbacks = [*([RngWatch(tags, noise.draws)] if watching else []), hooked]
        fitted = fit(rank, make_spec(max_epochs=1), make_model, callbacks=callbacks, noise=noise)
    return Watched(
        tags=tags.found,
        printed=printed.getvalue(),
        hooked=hooked.batches,
        hooked_afterwards=has_hooks(),
        fitted=fitted,
        random_state=torch.get_rng_state(),
    )


def own_noise(x: Tensor) -> Tensor:
    """Noise that each worker draws for itself."""
    return x + torch.poisson(torch.full_like(x, 0.5))


class Poisson(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return own_noise(x)


def with_between(layer: nn.Module) -> nn.Module:
    model = Small()
    model.between = layer
    return model


def poisson() -> nn.Module:
    return with_between(Poisson())


class Functional(Small):
    """Draws in its own forward before and after calling a layer that draws."""

    def __init__(self) -> None:
        super().__init__()
        self.between = nn.Sequential(nn.Identity(), Poisson())

    def forward(self, x: Tensor) -> Tensor:
        return own_noise(super().forward(own_noise(x)))


class Checkpointed(nn.Module):
    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), Poisson(), nn.Linear(3, 3))
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = checkpoint(self.layers, x, use_reentrant=self.use_reentrant)
        return output


def checkpointed() -> nn.Module:
    return with_between(Checkpointed(use_reentrant=False))


def checkpointed_reentrant() -> nn.Module:
    return with_between(Checkpointed(use_reentrant=True))


class Fails(nn.Module):
    def forward(self, _x: Tensor) -> Tensor:
        raise RuntimeError


class Recovers(nn.Module):
    """Catches the failure of one of its layers and does something else instead."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = Fails()
        self.instead = Poisson()

    def forward(self, x: Tensor) -> Tensor:
        with suppress(RuntimeError):
            self.fails(x)
        output: Tensor = self.instead(x) + own_noise(x)
        return output


def recovers() -> nn.Module:
    return with_between(Recovers())


def never_drawing() -> nn.Module:
    return with_between(nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.5).eval()))


def scripted() -> nn.Module:
    layer: nn.Module = torch.jit.script(nn.Dropout(0.5))
    return with_between(layer)


def compiled() -> nn.Module:
    layers: Any = torch.compile(nn.Sequential(nn.Identity(), nn.Dropout(0.5)), backend="eager")
    return with_between(layers)


def covered() -> nn.Module:
    return with_between(nn.Sequential(nn.Dropout(0.5), nn.AlphaDropout(0.5)))


def many() -> nn.Module:
    return with_between(nn.Sequential(*(Poisson() for _ in range(25))))


class NoisyStep(OwnLightning):
    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return super().training_step(batch, index) * own_noise(torch.ones(()))


def noisy_step() -> nn.Module:
    model = NoisyStep()
    model.body.between = Poisson()
    return model


def nan_at_once() -> nn.Module:
    return nan_in_layer(0, 1)


@pytest.mark.parametrize(
    ("make_model", "found"),
    [
        (poisson, "between (Poisson)"),
        (Functional, "model (Functional), between.1 (Poisson)"),
        (checkpointed, "between.layers.1 (Poisson)"),
        (checkpointed_reentrant, "between.layers.1 (Poisson)"),
        (recovers, "between.instead (Poisson), between (Recovers)"),
        (noisy_step, "body.between (Poisson), training_step (NoisyStep)"),
        (scripted, "between (RecursiveScriptModule)"),
        (compiled, "between (OptimizedModule)"),
    ],
)
def test_the_innermost_modules_that_draw_are_named_in_the_log_and_in_a_tag(
    worlds: Worlds, make_model: Callable[[], nn.Module], found: str
) -> None:
    (watched,) = worlds.run(1, watch, make_model)

    names = ", ".join(layer.split()[0] for layer in found.split(", "))
    assert watched.tags == [{"syncbn.noise_per_rank": names}]
    assert f"draws random numbers on each worker separately, in {found}: {CONSEQUENCE}\n" in watched.printed
    assert watched.printed.count("draws") == 1


@pytest.mark.parametrize("make_model", [small, never_drawing, covered])
def test_of_a_model_that_draws_nothing_or_by_sample_nothing_is_said(
    worlds: Worlds, make_model: Callable[[], nn.Module]
) -> None:
    (watched,) = worlds.run(1, watch, make_model)

    assert watched.tags == []
    assert "draws" not in watched.printed


def test_rank_0_alone_speaks(worlds: Worlds) -> None:
    first, second = worlds.run(2, watch, poisson)

    assert first.tags == [{"syncbn.noise_per_rank": "between"}]
    assert "between (Poisson)" in first.printed
    assert second.tags == []
    assert "draws" not in second.printed


def test_of_many_layers_the_first_are_named(worlds: Worlds) -> None:
    (watched,) = worlds.run(1, watch, many)

    (tags,) = watched.tags
    assert tags["syncbn.noise_per_rank"].endswith("between.18, between.19, and 5 more")


def test_after_the_first_batch_nothing_is_watched_any_more(worlds: Worlds) -> None:
    (watched,) = worlds.run(1, watch, poisson)

    assert watched.hooked == [True, False, False, False]
    assert not watched.hooked_afterwards


def test_after_a_failure_nothing_is_watched_any_more(worlds: Worlds) -> None:
    (watched,) = worlds.run(1, watch, nan_at_once)

    assert watched.fitted.error
    assert not watched.hooked_afterwards
    assert watched.tags == []


@pytest.mark.parametrize("make_model", [Functional, checkpointed, covered, compiled])
def test_watching_changes_neither_the_random_numbers_nor_the_results(
    worlds: Worlds, make_model: Callable[[], nn.Module]
) -> None:
    (watched,) = worlds.run(1, watch, make_model)
    (alone,) = worlds.run(1, watch, make_model, watching=False)

    assert torch.equal(watched.random_state, alone.random_state)
    assert watched.fitted.history == alone.fitted.history
    assert all(torch.equal(watched.fitted.state[name], value) for name, value in alone.fitted.state.items())
