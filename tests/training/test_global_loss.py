from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.fitting import (
    Fitted,
    fit,
    infinite_between,
    make_spec,
    nan_in_layer,
    nan_weight,
    own_lightning,
    samples,
    small,
)
from tests.training.worlds import Worlds

STEPS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]  # three epochs of 7, 7, 7 and 1 samples
ADVICE = "Lower the learning rate, check the data, or train in a higher precision."


@pytest.fixture(scope="module")
def alone(worlds: Worlds) -> Fitted:
    (fitted,) = worlds.run(1, fit, make_spec())
    return fitted


def assert_same(found: Fitted, expected: Fitted) -> None:
    assert found.history.keys() == expected.history.keys()
    for name, points in expected.history.items():
        assert [step for step, _ in found.history[name]] == [step for step, _ in points], name
        values = [[value for _, value in fitted.history[name]] for fitted in (found, expected)]
        assert values[0] == pytest.approx(values[1], rel=1e-10, abs=1e-10), name
    assert found.state.keys() == expected.state.keys()
    for name, value in expected.state.items():
        torch.testing.assert_close(found.state[name], value, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("world_size", [2, 3])
def test_losses_metrics_and_weights_do_not_depend_on_the_number_of_ranks(
    worlds: Worlds, alone: Fitted, world_size: int
) -> None:
    first, *others = worlds.run(world_size, fit, make_spec())

    assert_same(first, alone)
    for other in others:
        assert all(torch.equal(other.state[name], value) for name, value in first.state.items())


def test_the_loss_of_every_step_is_recorded(alone: Fitted) -> None:
    assert [step for step, _ in alone.history["train_loss"]] == STEPS
    assert alone.history["learning_rate"] == [(step, 0.1) for step in STEPS]


def test_metrics_of_epochs_stand_at_their_last_step_and_of_the_test_at_the_last_of_all(alone: Fitted) -> None:
    for name in ("train_accuracy", "val_accuracy", "val_loss"):
        assert [step for step, _ in alone.history[name]] == [4, 8, 12]
    for name in ("test_accuracy", "test_loss"):
        assert [step for step, _ in alone.history[name]] == [12]


def test_progress_ends_at_the_last_step(alone: Fitted) -> None:
    assert alone.progress is not None
    assert (alone.progress.step, alone.progress.total_steps, alone.progress.epoch) == (12, 12, 2)
    assert alone.progress.eta_seconds == 0


def test_a_lightning_module_of_a_users_own_does_not_depend_on_the_number_of_ranks(worlds: Worlds) -> None:
    spec = make_spec(max_epochs=None, max_steps=6)

    (one,) = worlds.run(1, fit, spec, own_lightning)
    three, *_ = worlds.run(3, fit, spec, own_lightning)

    assert_same(three, one)
    assert len(one.history["train_loss"]) == 6


def error_of_all(
    worlds: Worlds, make_model: Callable[[], nn.Module] = small, *, nan_at: int | None = None, **training: Any
) -> tuple[str, int]:
    """The message that all of three ranks give, and how many steps were recorded before it."""
    spec = make_spec(**training)
    found = worlds.run(3, fit, spec, make_model, train=samples(22, 1, nan_at), shuffle=False)
    messages = {fitted.error for fitted in found}
    assert len(messages) == 1, messages
    (message,) = messages
    assert message is not None
    assert message.endswith(ADVICE)
    return message, len(found[0].history["train_loss"]) if found[0].history else 0


def test_a_layer_that_gives_nan_on_one_rank_is_named_by_all(worlds: Worlds) -> None:
    message, recorded = error_of_all(worlds, functools.partial(nan_in_layer, rank=1, step=3))

    assert "the loss is nan at step 3" in message
    assert "in the output of layer between (OnRankFromStep) (rank 1)" in message
    assert recorded == 2


def test_nan_in_the_data_of_one_rank_is_named_by_all(worlds: Worlds) -> None:
    message, recorded = error_of_all(
        worlds, nan_at=7 + 4
    )  # the second of 3, 2, 2 samples of step 2 on rank 1

    assert "the loss is nan at step 2" in message
    assert "in the batch itself, before the first layer (rank 1)" in message
    assert recorded == 1


def test_weights_that_are_nan_from_the_beginning_are_named(worlds: Worlds) -> None:
    message, recorded = error_of_all(worlds, nan_weight)

    assert "at step 1;" in message
    assert "in the bias of layer head, before the first step" in message
    assert recorded == 0


def test_what_arises_between_two_layers_is_named_as_the_input_of_the_second(worlds: Worlds) -> None:
    message, _ = error_of_all(worlds, infinite_between)

    assert "in the input of layer head (Linear) (rank 0)" in message


def test_weights_that_explode_are_caught_at_the_step_that_shows_it(worlds: Worlds) -> None:
    message, recorded = error_of_all(worlds, lr=1e30, precision="32-true")

    assert f"at step {recorded + 1};" in message
    assert recorded >= 1
    assert "in the loss function" not in message
