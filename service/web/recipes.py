"""The recipes that are shipped, read as text: templates of the page that submits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from service.errors import NotFound


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe. name: its path below the folder, without its ending. about: its first comment."""

    name: str
    about: str
    text: str


def recipes() -> list[Recipe]:
    """Returns all of them, those of the folder itself first."""
    return list(_known().values())


def recipe(name: str) -> Recipe:
    """Returns one. Raises NotFound."""
    if (found := _known().get(name)) is None:
        raise NotFound(f"there is no template {name!r}; there are {', '.join(_known())}")
    return found


@cache
def _known() -> dict[str, Recipe]:
    folder = resources.files("training") / "recipes"
    files = {**_in_folder(folder, ""), **_in_folder(folder / "paper", "paper/")}
    return {name: _read(name, file) for name, file in files.items()}


def _in_folder(folder: Traversable, prefix: str) -> dict[str, Traversable]:
    if not folder.is_dir():
        return {}
    found = sorted((file for file in folder.iterdir()), key=lambda file: file.name)
    return {f"{prefix}{file.name[:-5]}": file for file in found if file.name.endswith(".yaml")}


def _read(name: str, file: Traversable) -> Recipe:
    text = file.read_text(encoding="utf-8")
    comment: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return Recipe(name=name, about=" ".join(comment), text=text)
