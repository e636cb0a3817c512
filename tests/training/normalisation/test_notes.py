from __future__ import annotations

from typing import Any

import pytest

from training.normalisation.notes import norm_notes
from training.spec import parse_spec


def notes_of(norm: dict[str, Any], workers: int, **training: Any) -> str:
    spec = parse_spec(
        {"model": {"class_path": "a.B"}, "data": {"class_path": "a.C"}, "norm": norm, "training": training}
    )
    return "".join(norm_notes(spec, workers))


GHOST = {"kind": "ghost_batch_norm", "samples": 4}


@pytest.mark.parametrize(
    ("norm", "workers", "training", "note"),
    [
        ({"kind": "group_norm"}, 2, {}, ""),
        ({"kind": "batch_norm"}, 1, {}, ""),
        ({"kind": "batch_norm"}, 2, {}, "depend on the number of workers"),
        ({"kind": "batch_renorm"}, 2, {}, "first 5000 steps; r within [1/3, 3] from step 40000"),
        (GHOST, 1, {}, "virtual batches of 4 samples"),
        (GHOST, 2, {"global_batch_size": 16}, "the same virtual batches of 4 samples as on one worker"),
        (GHOST, 3, {"global_batch_size": 16}, "share, of 5 or 6; make every share a multiple of 4"),
        (GHOST, 2, {"global_batch_size": 16, "accumulate_grad_batches": 4}, "share, of 2; make"),
        (GHOST, 2, {"loader_batches": 2}, "are cut from each worker's share, and the running"),
    ],
)
def test_the_log_says_what_depends_on_workers_and_steps(
    norm: dict[str, Any], workers: int, training: dict[str, Any], note: str
) -> None:
    found = notes_of(norm, workers, **training)

    assert note in found
    assert bool(note) == bool(found)
