"""The tutorial as a reader would type it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.stack import ENVIRONMENT, Stack

ROOT = Path(__file__).parents[2]
SET_UP = ["make setup", ". .venv/bin/activate"]  # what this test runs in
START = "syncbn up --data-dir my-service"  # the stack of this folder's tests is up already


def blocks() -> list[tuple[str, str, str]]:
    """Kind, name and text of each block of code."""
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\S+)(?: python| yaml)?\n(?::name: (\S+)\n\n)?(.*?)^```$", page, re.M | re.S)
    return [(kind, name, text) for kind, name, text in fenced]


def test_every_command_of_the_tutorial_works_as_it_stands(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "training").symlink_to(ROOT / "training")
    commands = []
    for kind, name, text in blocks():
        if name:
            file = tmp_path / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        else:
            assert kind == "console", f"a block that this test does not know:\n{text}"
            commands += [line.removeprefix("$ ") for line in text.splitlines()]
    assert commands[: len(SET_UP)] == SET_UP
    assert commands.count(START) == 1
    typed = [command for command in commands[len(SET_UP) :] if command != START]

    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", "\n".join(typed)],
        cwd=tmp_path,
        env=ENVIRONMENT | {"SYNCBN_URL": stack.url, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    for promised in ("first/metrics.jsonl", "first/model.pt", "first/curves.png", "verify/verify.png"):
        assert (tmp_path / promised).exists()
