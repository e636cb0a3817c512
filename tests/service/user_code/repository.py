"""A git repository for tests."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a test", "-c", "user.email=test@example.org", "-C", str(folder)]
    return subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def make_repository(folder: Path, files: Mapping[str, str]) -> str:
    """Makes a repository with one commit of these files, and returns the commit."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "all")
    return git(folder, "rev-parse", "HEAD")
