from __future__ import annotations

from pathlib import Path

import pytest

from service.user_code.source import found_source, public_url
from tests.service.user_code.repository import git, make_repository
from training.spec.source import Source


@pytest.fixture(autouse=True)
def _user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ada")


def test_the_commit_of_a_work_tree_and_whether_the_code_differs_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"nets/net.py": "1", "nets/.hidden": "1", "README": "1", ".gitignore": "build\n"}
    commit = make_repository(tmp_path, files)
    git(tmp_path, "remote", "add", "origin", "https://me:hunter2@example.org/team/nets.git")
    code = tmp_path / "nets"

    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))  # as in a hook
    clean = {"user": "ada", "commit": commit, "url": "https://example.org/team/nets.git", "dirty": False}
    assert found_source(code) == clean
    Source.model_validate(clean)
    for name in (
        "README",
        "nets/.hidden",
        "nets/mlruns/x",
        "nets/a.egg-info/x",
        "nets/x.pyc",
    ):  # not uploaded
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("2")
        assert found_source(code) == clean, name
    (code / "new file.py").write_text("2")
    assert found_source(code) == {**clean, "dirty": True}
    (code / "new file.py").unlink()
    (code / "net.py").write_text("2")
    assert found_source(code) == found_source(tmp_path) == {**clean, "dirty": True}


def test_without_a_commit_of_the_code_there_is_the_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, empty, ignored = tmp_path / "plain", tmp_path / "empty", tmp_path / "whole" / "build"
    for folder in (plain, empty, ignored):
        folder.mkdir(parents=True)
        (folder / "net.py").write_text("1")
    git(empty, "init", "--quiet")
    make_repository(tmp_path / "whole", {"x": "1", ".gitignore": "build\n"})

    for code in (plain, empty, ignored, tmp_path / "nowhere", None):
        assert found_source(code) == {"user": "ada"}, code
    monkeypatch.setenv("PATH", "")  # no git
    assert found_source(tmp_path / "whole") == {"user": "ada"}


@pytest.mark.parametrize(
    ("remote", "url"),
    [
        ("https://example.org/nets.git", "https://example.org/nets.git"),
        ("https://token@example.org:8443/nets.git?x=token#token", "https://example.org:8443/nets.git"),
        ("ssh://git:token@example.org:22/nets.git", "ssh://git@example.org:22/nets.git"),
        ("git@example.org:team/nets.git", "git@example.org:team/nets.git"),
        ("example.org:nets.git", "example.org:nets.git"),
        ("/home/ada/nets", None),
        ("file:///home/ada/nets", None),
        ("https://example.org:port/nets", None),
        ("https://example.org/a b", None),
        ("https://example.org/" + "a" * 500, None),
        ("", None),
    ],
)
def test_the_address_of_a_remote_has_no_secret(remote: str, url: str | None) -> None:
    assert public_url(remote) == url
    Source(url=url)
