from __future__ import annotations

from torch import nn

from training.model.modes import enter_training, in_evaluation


def network() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.BatchNorm1d(2))


class Frozen(nn.Module):
    """Keeps a part in evaluation mode whatever it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.net[0].eval()
        return self


def test_a_model_that_overrides_train_freezes_what_it_wants() -> None:
    model = Frozen()
    assert in_evaluation(model) == ""

    enter_training(model)

    assert in_evaluation(model) == "net.0 (Sequential)"


def test_a_part_that_the_author_put_into_evaluation_stays_there() -> None:
    model = network()
    model.get_submodule("0.1").eval()

    enter_training(model)

    assert in_evaluation(model) == "0.1 (BatchNorm1d)"
    assert model[0].training


def test_a_model_in_evaluation_is_trained() -> None:
    model = network().eval()
    assert in_evaluation(model) == "the whole model (Sequential)"

    enter_training(model)

    assert in_evaluation(model) == ""


def test_a_model_in_evaluation_that_overrides_train_is_asked() -> None:
    model = Frozen().eval()

    enter_training(model)

    assert in_evaluation(model) == "net.0 (Sequential)"


def test_of_many_parts_some_are_named() -> None:
    model = nn.Sequential(*(nn.Linear(1, 1).eval() for _ in range(30)))

    assert in_evaluation(model).endswith("19 (Linear) and 10 more")
