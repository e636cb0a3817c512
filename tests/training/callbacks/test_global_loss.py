from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from tests.training.fitting import (
    Fitted,
    fit,
    infinite_between,
    make_spec,
    nan_in_layer,
    nan_weight,
    own_lightning,
    plain,
    samples,
    small,
)
from tests.training.worlds import Worlds
from training.callbacks.stop_vote import StopVote, Vote
from training.loading.user_loader import user_loader
from training.spec import Spec

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
    """Returns the message that all three ranks raise, and the number of steps logged before it."""
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


def curve(worlds: Worlds, world_size: int, make_model: Callable[[], nn.Module], **training: Any) -> Fitted:
    """Trains for two epochs on the same 17 samples in order."""
    spec = make_spec(max_epochs=2, **training)
    first, *_ = worlds.run(world_size, fit, spec, make_model, train=samples(17, 1), shuffle=False)
    return first


def assert_same_curve(found: Fitted, losses: list[float], state: dict[str, Tensor]) -> None:
    history = found.history["train_loss"]
    assert [step for step, _ in history] == list(range(1, len(losses) + 1))
    assert [loss for _, loss in history] == pytest.approx(losses, rel=1e-9)
    for name, value in state.items():
        torch.testing.assert_close(found.state[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("batch_size", [7, 16, 50], ids=["3 are left", "1 is left", "all at once"])
def test_a_batch_is_the_same_in_any_number_of_passes_on_any_number_of_ranks(
    worlds: Worlds, batch_size: int
) -> None:
    x, y = samples(17, 1).tensors
    expected = by_hand(list(zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)) * 2)

    for world_size, passes in ((1, 1), (1, 2), (1, 3), (2, 1), (2, 3), (3, 2), (4, 2), (4, 3)):
        training = {"global_batch_size": batch_size, "accumulate_grad_batches": passes}
        assert_same_curve(curve(worlds, world_size, plain, **training), *expected)


def test_with_synchronized_layers_the_number_of_passes_counts_and_that_of_ranks_does_not(
    worlds: Worlds,
) -> None:
    whole, alone, *shared = (
        curve(worlds, world_size, small, accumulate_grad_batches=passes)
        for world_size, passes in ((1, 1), (1, 2), (2, 2), (4, 2))
    )

    expected = [loss for _, loss in alone.history["train_loss"]]
    for found in shared:
        assert_same_curve(found, expected, alone.state)
    assert [loss for _, loss in whole.history["train_loss"]] != pytest.approx(expected, rel=1e-3)


class Voter(Callback):
    """Casts this rank's votes by step, and records the decisions by micro-batch."""

    def __init__(self, votes: dict[int, Vote]) -> None:
        self.votes, self.vote = votes, StopVote()
        self.decided: list[Vote] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.vote.cast(self.votes.get(trainer.global_step + 1, Vote.GO_ON))

    def on_train_batch_end(self, *_: Any) -> None:
        self.decided.append(self.vote.decision)


def decided(rank: int, spec: Spec, votes: list[dict[int, Vote]]) -> list[Vote]:
    voter = Voter(votes[rank])
    fit(rank, spec, plain, train=samples(28, 1), callbacks=[voter], vote=voter.vote)
    return voter.decided


def test_the_highest_vote_on_a_step_is_known_to_all_ranks_after_its_last_micro_batch(worlds: Worlds) -> None:
    spec = make_spec(max_epochs=1, accumulate_grad_batches=2)
    save, stop = Vote.SAVE, Vote.SAVE_AND_STOP

    found = worlds.run(3, decided, spec, [{2: save}, {2: save, 3: stop}, {2: save, 3: save}])

    assert found == [[0, 0, 0, save, 0, stop, 0, 0]] * 3


def own_fit(rank: int, passes: int) -> tuple[list[float], dict[str, Tensor]]:
    spec = make_spec(max_epochs=1, accumulate_grad_batches=passes)
    data = samples(24, 1)
    mine = Subset(data, range(rank, 24, dist.get_world_size()))
    fitted = fit(rank, spec, plain, loader=user_loader(DataLoader(mine, batch_size=4)))
    return [value for _, value in fitted.history["train_loss"]], fitted.state


def test_with_loaders_of_the_users_own_a_step_is_the_mean_over_its_passes_and_ranks(worlds: Worlds) -> None:
    (losses, state), (_, other) = worlds.run(2, own_fit, 2)

    # 12 samples each, 4 at a time: steps of 16 and of 8 samples, taken in this order.
    expected = by_hand([samples(24, 1)[:16], samples(24, 1)[16:]])
    assert losses == pytest.approx(expected[0], rel=1e-9)
    for name, value in expected[1].items():
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-9)
        assert torch.equal(state[name], other[name])


def by_hand(batches: list[tuple[Tensor, Tensor]]) -> tuple[list[float], dict[str, Tensor]]:
    """SGD on whole batches in one process, from the same initial weights as `fit`."""
    seed_everything(0, verbose=False)
    model = plain().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses, {f"model.{name}": value for name, value in model.state_dict().items()}
