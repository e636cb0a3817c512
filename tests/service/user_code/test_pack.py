from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from service.user_code.pack import PackError, pack


def _write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")


def _names(archive: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return opened.namelist()


def test_files_are_packed_under_paths_relative_to_the_directory(tmp_path: Path) -> None:
    _write(tmp_path, "models.py", "data/__init__.py", "data/shapes.py")

    archive = pack(tmp_path)

    assert _names(archive) == ["data/__init__.py", "data/shapes.py", "models.py"]
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.read("data/shapes.py") == b"# data/shapes.py\n"


def test_equal_files_give_equal_bytes_whenever_and_in_whatever_order_they_were_written(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    _write(first, "a.py", "b/c.py")
    _write(second, "b/c.py", "a.py")
    os.utime(second / "a.py", (0, 0))
    (second / "a.py").chmod(0o600)

    assert pack(first) == pack(second)


def test_generated_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    _write(tmp_path, "model.py", ".env", ".git/config", "pkg/__pycache__/x.cpython-312.pyc", "old.pyc")
    _write(
        tmp_path,
        ".venv/lib/x.py",
        "env/pyvenv.cfg",
        "env/lib/y.py",
        "node_modules/z.js",
        "a.egg-info/PKG-INFO",
    )
    _write(tmp_path, ".mypy_cache/c.json", "mlruns/0/meta.yaml", "syncbn-data/queue.db")

    assert _names(pack(tmp_path)) == ["model.py"]


def test_a_link_is_packed_as_what_it_leads_to(tmp_path: Path) -> None:
    _write(tmp_path, "shared/layers.py", "code/model.py")
    (tmp_path / "code/shared").symlink_to(tmp_path / "shared")
    (tmp_path / "code/again.py").symlink_to(tmp_path / "code/model.py")

    assert _names(pack(tmp_path / "code")) == ["again.py", "model.py", "shared/layers.py"]


def test_a_link_to_a_directory_above_does_not_make_packing_endless(tmp_path: Path) -> None:
    _write(tmp_path, "a/model.py", "b/data.py")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "a/across").symlink_to(tmp_path / "b")
    (tmp_path / "b/back").symlink_to(tmp_path / "a")

    assert "a/across/data.py" in _names(pack(tmp_path))


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"nowhere is not a directory"):
        pack(tmp_path / "nowhere")


def test_a_directory_with_nothing_to_upload_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, ".git/config")

    with pytest.raises(PackError, match="contains no files to upload"):
        pack(tmp_path)


def test_too_much_is_refused_naming_the_biggest_files(tmp_path: Path) -> None:
    _write(tmp_path, "model.py")
    (tmp_path / "train.npy").write_bytes(bytes(3 * 2**20))
    (tmp_path / "test.npy").write_bytes(bytes(2 * 2**20))

    with pytest.raises(PackError, match=r"5\.0 MiB.*train\.npy \(3\.0 MiB\), test\.npy \(2\.0 MiB\)"):
        pack(tmp_path, max_bytes=2**20)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    _write(tmp_path, "model.py", "gone.py")
    (tmp_path / "gone.py").unlink()
    (tmp_path / "gone.py").symlink_to("/proc/self/mem")  # a file that opens but cannot be read

    with pytest.raises(PackError, match=r"cannot read .*gone\.py"):
        pack(tmp_path)
