"""What user code that fails on a share without samples is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from testing.ranks import RankError
from tests.training.as_lightning import spec_of
from tests.training.attempts import attempt
from tests.training.lab_modules import Regression, features
from tests.training.lightning_rows import Row
from tests.training.worlds import Worlds

EXPLAINED = r"(?s)RuntimeError: max\(\).*Rank [12] has no sample of this batch, .* training\.drop_last"


class NeedsSamples(Regression):
    """Needs a sample in each step of a stage."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage

    def training_step(self, batch: Any, index: int) -> Any:
        self._look("train", batch)
        return super().training_step(batch, index)

    def validation_step(self, batch: Any, index: int) -> None:
        self._look("val", batch)
        super().validation_step(batch, index)

    def _look(self, stage: str, batch: Any) -> Tensor | None:
        return features(batch)[0].max() if stage == self.stage else None


@pytest.mark.parametrize("stage", ["train", "val"])
def test_an_error_on_an_empty_share_says_that_it_is_empty(worlds: Worlds, tmp_path: Path, stage: str) -> None:
    spec = spec_of(Row(group="", what=""))
    spec["model"] = {"class_path": f"{__name__}.NeedsSamples", "init_args": {"stage": stage}}

    with pytest.raises(RankError, match=EXPLAINED):
        worlds.run(3, attempt, spec, tmp_path)


def test_an_error_on_a_share_with_samples_is_told_as_it_is(worlds: Worlds, tmp_path: Path) -> None:
    spec = spec_of(Row(group="", what="", module="Regression"))
    spec["model"] = {"class_path": f"{__name__}.Fails"}

    with pytest.raises(RankError) as told:
        worlds.run(2, attempt, spec, tmp_path)

    assert "of the user" in str(told.value)
    assert "has no sample" not in str(told.value)


class Fails(Regression):
    def training_step(self, batch: Any, index: int) -> Any:  # noqa: ARG002
        raise LookupError("of the user")
