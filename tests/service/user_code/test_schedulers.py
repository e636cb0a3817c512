from __future__ import annotations

from pathlib import Path

import pytest

from service.user_code.schedulers import scheduler_problems
from tests.service.examples import make_spec

SCHEDULER = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}}


@pytest.mark.parametrize(
    ("base", "optimizer", "is_problem"),
    [
        ("L.LightningModule", None, True),
        ("Base", None, True),
        ("Base", {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}, False),
        ("nn.Module", None, False),
        (", ".join(["Net"] * 900), None, False),
    ],
)
def test_a_scheduler_of_a_lightning_module_needs_an_optimizer(
    base: str, optimizer: object, is_problem: bool, tmp_path: Path
) -> None:
    (tmp_path / "lab.py").write_text(f"class Base(LightningModule): ...\n\nclass Net({base}): ...\n")
    spec = make_spec(model={"class_path": "lab.Net"}, lr_scheduler=SCHEDULER, optimizer=optimizer)

    found = {each.key: each.message for each in scheduler_problems(spec, tmp_path)}

    assert list(found) == ["lr_scheduler"] * is_problem
    assert not is_problem or "name one in optimizer, or leave lr_scheduler out" in found["lr_scheduler"]
