"""What the probes log in jobs on one and two workers, against what the trained network says itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training.attempts import Done, attempt, spec_of
from tests.training.worlds import Worlds
from training.data import Digits
from training.errors import BuildError
from training.models import ConvNet, FullyConnected
from training.probes.folding import folded, undone
from training.probes.inputs import InputPercentiles, inputs_of
from training.probes.noise import BatchNoise
from training.probes.probe import Probe, first_samples

STEPS, EVERY = 30, 10
WIDTH = 5
MODEL = {"in_features": 64, "width": WIDTH, "depth": 2, "activation": "sigmoid"}
PROBES: dict[str, dict[str, Any]] = {
    "InputPercentiles": {"layer": "hidden.1.activation", "unit": 2, "every": EVERY, "samples": 9},
    "InputMoments": {"every": EVERY, "samples": 9},
    "GradientChange": {"scales": [1.0], "every": EVERY, "samples": 9},
    "BatchNoise": {
        "every": STEPS,
        "groups": [3],
        "batch": 9,
        "samples": 20,
        "arrangements": ["random", "sorted"],
    },
    "Folding": {"samples": 9},
    "StatisticsSources": {"batches": [1, 3], "batch_size": 7, "samples": 300},
}


@pytest.fixture(scope="module")
def done(worlds: Worlds, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Done]:
    """The same job with all probes on one and on two workers."""
    folders = {workers: tmp_path_factory.mktemp(f"on-{workers}") for workers in (1, 2)}
    spec = spec_with(PROBES)
    return {workers: worlds.run(workers, attempt, spec, folder)[0] for workers, folder in folders.items()}


def spec_with(probes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A job on digits with these probes and their arguments."""
    spec = spec_of(max_steps=STEPS, global_batch_size=32)
    spec["data"] = {"class_path": "training.data.Digits"}
    spec["model"] = {"class_path": "training.models.FullyConnected", "init_args": MODEL}
    spec["trainer"] = {
        "callbacks": [
            {"class_path": f"training.probes.{name}", "init_args": arguments}
            for name, arguments in probes.items()
        ]
    }
    return spec


def test_probes_change_no_bit_of_the_training(done: dict[int, Done], worlds: Worlds, tmp_path: Path) -> None:
    without = worlds.run(2, attempt, spec_with({}), tmp_path)[0]

    assert without.state.keys() == done[2].state.keys()
    for name, value in without.state.items():
        assert torch.equal(value, done[2].state[name])


def test_what_probes_measure_does_not_depend_on_the_number_of_workers(done: dict[int, Done]) -> None:
    one, two = (
        {
            (name, step): value
            for name in {name for row in each.rows for name in row}
            if name.startswith(("input/", "gradient/", "noise/", "statistics/", "folded/layers"))
            for step, value in each.series(name).items()
        }
        for each in (done[1], done[2])
    )

    assert one.keys() == two.keys()
    assert {step for name, step in one if name == "input/percentile_50"} == {1, 10, 20, STEPS}
    assert two == pytest.approx(one, rel=1e-8, abs=1e-10)


def trained(done: Done) -> FullyConnected:
    model = FullyConnected(**MODEL).double()  # type: ignore[arg-type]
    own = {name.removeprefix("model."): value for name, value in done.state.items()}
    model.load_state_dict({name: own[name] for name in model.state_dict()})
    return model


def samples() -> tuple[Tensor, Tensor]:
    x, y = first_samples(digits().val, 9)
    return x.double(), y


def digits() -> Digits:
    data = Digits()
    data.setup()
    return data


def hidden_inputs(model: FullyConnected, x: Tensor) -> list[Tensor]:
    """The inputs of the sigmoids by the definition: each layer's units normalised over the samples."""
    found, out = [], x.flatten(1)
    for layer in model.hidden:
        linear, norm, _ = layer.children()
        assert isinstance(linear, nn.Linear)
        assert isinstance(norm, nn.BatchNorm1d)
        u = out @ linear.weight.T
        xhat = (u - u.mean(0)) / (u.var(0, correction=0) + norm.eps).sqrt()
        found.append(norm.weight * xhat + norm.bias)
        out = found[-1].sigmoid()
    return found


def test_percentiles_and_moments_are_those_of_the_network_as_trained(done: dict[int, Done]) -> None:
    with torch.no_grad():
        inputs = [each.numpy() for each in hidden_inputs(trained(done[2]), samples()[0])]

    for percentile in (15, 50, 85):
        expected = np.percentile(inputs[1][:, 2], percentile)
        assert done[2].series(f"input/percentile_{percentile}")[STEPS] == pytest.approx(expected, rel=1e-9)
    for index, values in enumerate(inputs):
        layer = f"input/hidden.{index}.activation"
        assert done[2].series(f"{layer}/mean")[STEPS] == pytest.approx(values.mean(), abs=1e-9)
        assert done[2].series(f"{layer}/std")[STEPS] == pytest.approx(values.std(), rel=1e-9)
        assert set(done[2].series(f"{layer}/moved")) == {10, 20, STEPS}


def test_the_change_of_the_gradient_is_that_along_a_step_of_the_learning_rate(done: dict[int, Done]) -> None:
    model = trained(done[2]).train()
    x, y = samples()

    def gradient() -> Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(model.parameters()))])

    before = gradient()
    # The schedule steps at the end of an epoch, which none of these steps is.
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(weights - 0.05 * before, model.parameters())
    change = (gradient() - before).norm() / before.norm()

    assert done[2].series("gradient/change")[STEPS] == pytest.approx(change.item(), rel=1e-6)
    expected = change.item() / 0.05
    assert done[2].series("gradient/smoothness")[STEPS] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("arrangement", ["random", "sorted"])
def test_noise_is_that_of_three_samples_of_nine_in_the_trained_network(
    done: dict[int, Done], arrangement: str
) -> None:
    model = trained(done[2])
    x, y = first_samples(digits().val, 18)
    mean, var = [], []
    with torch.no_grad():
        by_batch = [hidden_inputs(model, part.double()) for part in torch.split(x, 9)]
    for index, layer in enumerate(model.hidden):
        norm = layer.norm
        assert isinstance(norm, nn.BatchNorm1d)
        means, variances = [], []
        for hidden, labels in zip(by_batch, torch.split(y, 9), strict=True):
            normalised = ((hidden[index] - norm.bias) / norm.weight).detach().numpy()
            order = np.argsort(labels.numpy(), kind="stable") if arrangement == "sorted" else np.arange(9)
            groups = normalised[order].reshape(3, 3, WIDTH)
            means.append(groups.mean(1))
            variances.append(groups.var(1) - normalised.var(0))
        mean.append(np.sqrt(np.mean(np.square(means))))
        var.append(np.sqrt(np.mean(np.square(variances))))

    for name, expected in (("mean", np.median(mean)), ("var", np.median(var))):
        found = done[2].series(f"noise/{arrangement}/{name}/3")
        assert set(found) == {1, STEPS}
        assert found[STEPS] == pytest.approx(expected, rel=1e-6)


def test_a_trained_network_folds_and_its_norm_can_be_undone(done: dict[int, Done]) -> None:
    assert done[2].series("folded/layers") == {STEPS: 2.0}
    assert done[2].series("folded/remaining") == {STEPS: 0.0}
    for name in ("folded/difference", "identity/hidden.0.norm", "identity/hidden.1.norm"):
        assert done[2].series(name)[STEPS] < 1e-12


def test_statistics_are_those_of_one_process_with_the_whole_batches(done: dict[int, Done]) -> None:
    data = digits()
    order = torch.randperm(1257, generator=torch.Generator().manual_seed(0))[:21]
    batches = [torch.stack([data.train[int(index)][0] for index in part]) for part in torch.split(order, 7)]
    x, y = first_samples(data.test, 300)
    for momentum, name in ((0.1, "running"), (None, "mean")):
        model = trained(done[2])
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.reset_running_stats()
                layer.momentum = momentum
        errors = {}
        with torch.no_grad():
            for count, batch in enumerate(batches, 1):
                model.train()(batch.double())
                errors[count] = (model.eval()(x.double()).argmax(1) != y).double().mean().item()

        assert len(set(errors.values())) > 1
        for count in (1, 3):
            assert done[2].series(f"statistics/{name}/{count}") == {STEPS: errors[count]}
    first = [done[2].series(f"statistics/{name}/1")[STEPS] for name in ("precise", "mean")]
    assert first[0] == first[1]  # of one batch, both are its statistics


def refusal(rank: int, spec: dict[str, Any], folder: Path) -> str:
    try:
        attempt(rank, spec, folder)
    except BuildError as error:
        return str(error)
    return "not refused"


@pytest.mark.parametrize(
    ("probe", "arguments", "model", "message"),
    [
        ("InputPercentiles", {"layer": "hidden.7"}, {}, "no layer 'hidden.7'; it has hidden.0.activation"),
        ("StatisticsSources", {}, {"norm": False}, "needs a model with BatchNorm"),
        ("BatchNoise", {}, {"norm": False}, "BatchNoise needs a model with BatchNorm"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_step(
    worlds: Worlds, tmp_path: Path, probe: str, arguments: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    spec = spec_with({probe: arguments})
    spec["model"]["init_args"] = MODEL | model

    (said,) = worlds.run(1, refusal, spec, tmp_path)

    assert said.startswith("trainer.callbacks: ")
    assert message in said
    assert not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text()


def test_numbers_that_measure_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="InputPercentiles: every is 0 and samples is 500"):
        InputPercentiles("hidden.0.activation", every=0)
    with pytest.raises(ValueError, match="samples is 1"):
        Probe(samples=1)
    with pytest.raises(ValueError, match=r"groups is \[3\], batch 64, samples 512; give divisors of batch"):
        BatchNoise(groups=[3])


def test_positions_of_a_convolution_count_as_values_and_its_norm_folds() -> None:
    torch.manual_seed(0)
    model, x = ConvNet(widths=(3, 4)).double(), torch.randn(2, 1, 6, 6, dtype=torch.float64)

    found = inputs_of(model, x, ["features.2"])["features.2"]

    assert found.shape == (2 * 6 * 6, 3)
    assert max(undone(model, x).values()) < 1e-12
    assert folded(ConvNet(widths=(3, 4)).double(), x)["folded/layers"] == 2
