from __future__ import annotations

from pathlib import Path

import pytest

from training.callbacks.own_checkpoints import KeptFiles
from training.errors import BuildError

FOLDER, KEY = "files", "ModelCheckpoint.dirpath"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the job."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> KeptFiles:
    return KeptFiles(tmp_path / "run" / FOLDER)


def write(files: KeptFiles, path: str, text: str = "saved") -> None:
    kept = Path(files.path_of(path, KEY))
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(text)


@pytest.mark.parametrize("path", ["best.ckpt", "a/b/best.ckpt", "./a/../a/best.ckpt"])
def test_a_relative_path_is_kept_and_can_be_read_where_it_was_written(
    work: Path, files: KeptFiles, path: str
) -> None:
    write(files, path)

    assert Path(path).read_text() == "saved"
    assert not work.resolve().joinpath(path).resolve().is_relative_to(work)
    assert len([each for each in work.iterdir() if each.is_symlink()]) == 1


@pytest.mark.parametrize("path", [".", "./", "", "out/.."])
def test_the_working_directory_itself_is_the_kept_folder(work: Path, files: KeptFiles, path: str) -> None:
    assert files.path_of(path, KEY) == files.path_of(work, KEY) == str(files.folder)


@pytest.mark.usefixtures("work")
def test_a_path_in_the_home_directory_is_written_out(
    files: KeptFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    assert files.path_of("~/logs", KEY) == str(tmp_path / "logs")


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("path", ["../up", "a/../../up", ".."])
def test_a_relative_path_out_of_the_working_directory_is_refused_by_its_key(
    files: KeptFiles, path: str
) -> None:
    with pytest.raises(BuildError, match=rf"{KEY}: .* leads out of the working directory"):
        files.path_of(path, KEY)


def test_a_path_beside_a_lent_working_directory_is_refused(work: Path, tmp_path: Path) -> None:
    beside = str(work.parent / "up")

    with pytest.raises(BuildError, match="an absolute one"):
        KeptFiles(tmp_path.parent / FOLDER, is_lent=True).path_of(beside, KEY)
    assert KeptFiles(tmp_path.parent / FOLDER).path_of(beside, KEY) == beside


def test_an_absolute_path_in_the_working_directory_is_kept(work: Path, files: KeptFiles) -> None:
    assert files.path_of(str(work / "a" / "x.ckpt"), KEY) == str(files.folder / "a" / "x.ckpt")


@pytest.mark.parametrize("url", ["s3://bucket/a.ckpt", "file:///tmp/a.ckpt"])
def test_urls_and_paths_elsewhere_stay(work: Path, files: KeptFiles, tmp_path: Path, url: str) -> None:
    elsewhere = str(tmp_path / "elsewhere" / "a.ckpt")

    assert files.path_of(url, KEY) == url
    assert files.path_of(elsewhere, KEY) == elsewhere
    assert files.path_of(files.folder / "a.ckpt", KEY) == str(files.folder / "a.ckpt")
    assert list(work.iterdir()) == []


def test_a_kept_path_stays_although_the_run_is_in_the_working_directory(work: Path) -> None:
    files = KeptFiles(work / "output" / FOLDER)

    once = files.path_of("a.ckpt", KEY)

    assert once == str(files.folder / "a.ckpt")
    assert files.path_of(once, KEY) == once


def test_a_folder_of_the_users_stays_and_gets_a_link_inside(work: Path, files: KeptFiles) -> None:
    (work / "checkpoints").mkdir()
    (work / "checkpoints" / "pretrained.ckpt").write_text("theirs")

    write(files, "checkpoints/best.ckpt")

    assert not (work / "checkpoints").is_symlink()
    assert Path("checkpoints/best.ckpt").read_text() == "saved"
    assert Path("checkpoints/pretrained.ckpt").read_text() == "theirs"


def test_a_file_of_the_users_is_not_replaced_by_a_link(work: Path, files: KeptFiles) -> None:
    (work / "best.ckpt").write_text("theirs")
    (work / "link.ckpt").symlink_to(work / "best.ckpt")

    for path in ("best.ckpt", "link.ckpt"):
        write(files, path)

        assert Path(path).read_text() == "theirs"
        assert Path(files.path_of(path, KEY)).read_text() == "saved"


def test_the_link_of_an_earlier_run_leads_to_this_one(work: Path, files: KeptFiles, tmp_path: Path) -> None:
    write(KeptFiles(tmp_path / "earlier" / FOLDER), "a/best.ckpt", "earlier")
    assert (work / "a").is_symlink()

    write(files, "a/best.ckpt")

    assert Path("a/best.ckpt").read_text() == "saved"
    assert (tmp_path / "earlier" / FOLDER / "a" / "best.ckpt").read_text() == "earlier"


def test_links_of_earlier_runs_are_removed_and_no_others(
    work: Path, files: KeptFiles, tmp_path: Path
) -> None:
    write(KeptFiles(tmp_path / "earlier" / FOLDER), "earlier.ckpt")
    write(files, "own.ckpt")
    (work / "data").symlink_to(tmp_path)
    (work / "set").symlink_to(tmp_path / "elsewhere" / FOLDER / "set")
    (work / "plain").touch()

    files.remove_links()

    assert sorted(path.name for path in work.iterdir()) == ["data", "own.ckpt", "plain", "set"]
    assert (tmp_path / "earlier" / FOLDER / "earlier.ckpt").exists()


def test_a_read_only_working_directory_has_no_link(
    files: KeptFiles, monkeypatch: pytest.MonkeyPatch, work: Path
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "symlink_to", refuse)  # root may write everywhere

    write(files, "a/best.ckpt")
    files.remove_links()

    assert (files.folder / "a" / "best.ckpt").read_text() == "saved"
    assert list(work.iterdir()) == []
