from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.advise import Advice, Layer, advise
from training.noise_rule import NOISY
from training.spec import SpecError, parse_spec


def found(noise: float, *, share: float = 0.5, batch: int | None = 4) -> Advice:
    layer = Layer(name="bn", mean_noise=noise, var_noise=2 * noise, dead=0, exploding=0)
    seconds = {"sync_batch_norm": 0.012, "batch_norm": 0.01, "group_norm": 0.011}
    return Advice(name="net", workers=2, share=share, batch=batch, layers=[layer], seconds=seconds)


def test_noise_of_the_whole_batch_follows_from_that_of_a_share() -> None:
    """By the variance of means of samples drawn without replacement, and of all of them."""
    torch.manual_seed(0)
    batch = torch.randn(20_000, 12, dtype=torch.float64)
    own = (batch[:, :4].mean(1) - batch.mean(1)).square().mean().sqrt()

    assert found(float(own), share=4 / 12).global_noise == pytest.approx(math.sqrt(1 / 12), rel=0.02)


@pytest.mark.parametrize(
    ("noise", "kind", "words"),
    [
        (0.01, "sync_batch_norm", "would nearly do"),
        (0.2, "sync_batch_norm", "those of all are enough"),
        (0.5, "group_norm", "batches 4 times as large"),
    ],
)
def test_advice_follows_from_the_noise(noise: float, kind: str, words: str) -> None:
    advice = found(noise)
    assert advice.recommended == kind
    assert words in " ".join(advice.words())
    assert "a worker has 2 of the 4 samples" in advice.words()[0]
    assert "synchronizing costs 20 %" in advice.words()[3]


def test_what_is_noticed_besides_is_said() -> None:
    layer = Layer(name="", mean_noise=0.1, var_noise=0.1, dead=1, exploding=2)
    words = " ".join(replace(found(0.1, batch=None), layers=[layer]).words())
    assert "a worker has 50 % of a batch" in words
    assert "1 channel with hardly any variance, in the model" in words
    assert "2 channels above 10,000, in the model" in words


def of_digits(class_path: str, **init_args: object) -> dict[str, object]:
    return {
        "model": {"class_path": class_path, "init_args": init_args},
        "data": {"class_path": "training.data.Digits"},
        "training": {"global_batch_size": 6},
    }


def test_a_few_steps_say_what_a_model_needs(tmp_path: Path) -> None:
    """Also if a callback waits for a metric of the validation."""
    runs: list[str] = []
    stopping = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val_loss"},
    }
    spec = parse_spec(
        of_digits("training.models.ConvNet")
        | {"trainer": {"callbacks": [stopping], "limit_train_batches": 3}}
    )
    advice = advise(spec, workers=2, steps=6, code=None, output=tmp_path, running=runs.append)

    assert len(runs) == 4
    assert (advice.batch, advice.share) == (6, 0.5)
    assert 0 < advice.noise < math.sqrt(1 / 3 - 1 / 6) * 1.3  # it would be that with one value per sample
    assert advice.recommended == ("group_norm" if advice.global_noise >= NOISY else "sync_batch_norm")
    assert set(advice.seconds) == {"sync_batch_norm", "batch_norm", "group_norm"}
    assert json.loads((tmp_path / "advice.json").read_text())["words"] == advice.words()
    assert (tmp_path / "advice.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_without_batch_normalisation_needs_none(tmp_path: Path) -> None:
    spec = parse_spec(of_digits("tests.training.test_advise.Linear"))
    advice = advise(spec, workers=2, steps=6, code=None, output=tmp_path, running=lambda _: None)

    assert advice.recommended == "keep"
    assert advice.words() == ["The model has no BatchNorm layer, so norm.kind changes nothing."]


class Linear(torch.nn.Sequential):
    def __init__(self) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, 10))


def test_more_workers_than_samples_are_refused(tmp_path: Path) -> None:
    spec = parse_spec(of_digits("training.models.ConvNet") | {"training": {"global_batch_size": 1}})
    with pytest.raises(SpecError, match="1 samples cannot be shared by 2 workers"):
        advise(spec, workers=2, steps=6, code=None, output=tmp_path, running=lambda _: None)
