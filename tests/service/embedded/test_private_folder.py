from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.embedded.private_folder import make_private
from service.errors import Refused
from service.queue.store import Store


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_and_the_databases_in_it_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "deeper"

    make_private(folder, ["syncbn.db"])
    store = Store(f"sqlite:///{folder / 'syncbn.db'}")
    store.migrate()

    assert mode(folder) == 0o700
    files = list(folder.iterdir())
    assert {path.name for path in files} == {"syncbn.db", "syncbn.db-shm", "syncbn.db-wal"}
    assert {mode(path) for path in files} == {0o600}
    store.close()


def test_a_folder_of_an_earlier_version_is_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir(mode=0o755)
    (folder / "stack.json").write_text("{}")
    (folder / "syncbn.db").touch(mode=0o644)

    make_private(folder, ["syncbn.db"])

    assert mode(folder) == 0o700
    assert mode(folder / "syncbn.db") == 0o600


@pytest.mark.parametrize(("bits", "file"), [(0o755, "other"), (0o1777, "stack.json")], ids=["used", "shared"])
def test_a_folder_that_others_use_keeps_its_permissions(tmp_path: Path, bits: int, file: str) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(bits)
    (folder / file).touch()

    make_private(folder, ["syncbn.db"])

    assert mode(folder) == bits
    assert mode(folder / "syncbn.db") == 0o600


@pytest.mark.parametrize("path", ["file", "file/deeper"])
def test_what_is_no_folder_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(Refused, match=r"--data-dir .*file.* cannot be used: .*: name a folder"):
        make_private(tmp_path / path, [])


def test_what_is_kept_in_a_folder_that_others_use_is_closed_to_them(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "other").touch()

    make_private(tmp_path, ["syncbn.db"], ["logs"])
    make_private(tmp_path, ["syncbn.db"], ["logs"])

    assert mode(tmp_path / "logs") == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_that_another_user_has_put_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    os.chown(tmp_path / "logs", 65534, 65534)

    with pytest.raises(Refused, match="belongs to another user"):
        make_private(tmp_path, [], ["logs"])


def test_jobs_of_another_user_pass_through_to_the_runs_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"

    make_private(folder, ["syncbn.db"], ["logs", "checkpoints"], passable=["checkpoints"])

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {"data": 0o711, "checkpoints": 0o711, "logs": 0o700, "syncbn.db": 0o600}
    make_private(folder, ["syncbn.db"], ["logs", "checkpoints"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
