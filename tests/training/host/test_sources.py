from __future__ import annotations

from pathlib import Path

import pytest

from training.errors import BuildError
from training.host.local import train_locally
from training.host.sources import checkpoint_source
from training.spec import Spec, parse_spec


def spec_of(**start_from: str) -> Spec:
    return parse_spec(
        {
            "model": {"class_path": "training.models.MLP"},
            "data": {"class_path": "training.data.Digits"},
            "start_from": start_from,
        }
    )


def test_a_path_is_that_of_a_run_of_a_checkpoint_or_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = tmp_path / "output" / "run" / "checkpoints"
    file = checkpoints / "step-000000010" / "lightning.ckpt"
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.chdir(tmp_path)

    for path in ("output", "output/run", str(checkpoints)):
        assert checkpoint_source(spec_of(path=path)) == str(checkpoints)
    for path in (str(file), str(file.parent)):
        assert checkpoint_source(spec_of(path=path)) == str(file)


def test_what_is_not_on_this_machine_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, words in (
        ({"job": "j123"}, "start_from.job: names a job of a service"),
        ({"run": "123"}, "start_from.run: names a job of a service"),
        ({"path": str(tmp_path)}, "start_from.path: .* holds no checkpoints"),
        ({"path": str(tmp_path / "no")}, "start_from.path: .* does not exist"),
    ):
        with pytest.raises(BuildError, match=words):
            checkpoint_source(spec_of(**given))

    # A run does not delete what it starts from.
    kept = tmp_path / "run" / "checkpoints" / "step-000000010"
    kept.mkdir(parents=True)
    assert train_locally(spec_of(path=str(tmp_path)), code=None, output=tmp_path) == 2
    assert "name another folder" in capsys.readouterr().err
    assert kept.exists()
