"""Files of a spec on the command line, and the files that keys of a configuration of LightningCLI name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def read_file(source: str) -> Any:
    """Returns the document in a file (- is stdin), with the content of the files that its keys name.

    These are relative to the file's folder. Raises SpecError.
    """
    from training.spec import load_yaml
    from training.spec.layers import of_fit, with_files

    folder = Path() if source == "-" else Path(source).parent
    return with_files(of_fit(load_yaml(_text(source))), _reader(folder))


def with_content(overrides: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Returns overrides such as ("model", "model.yaml") with the content of the files that they name.

    These are relative to the current folder. A file without a class gives one override for each of its keys,
    so that it replaces these alone. Raises SpecError.
    """
    from training.spec.layers import with_files

    found: list[tuple[str, Any]] = []
    for name, value in overrides:
        path = name.removesuffix("+")
        first, _, rest = path.partition(".")
        content = with_files({first: {rest: value} if rest else value}, _reader(Path()))[first]
        content = content[rest] if rest else content
        if content is not value and isinstance(content, Mapping) and "class_path" not in content:
            found += [(f"{path}.{key}", each) for key, each in content.items()]
        else:
            found.append((name, content))
    return found


def _reader(folder: Path) -> Callable[[str, str], Any]:
    def read(key: str, file: str) -> Any:
        from training.spec import load_yaml
        from training.spec.layers import with_files

        path = folder / file
        content = load_yaml(_text(str(path), key))
        if key == "trainer" and isinstance(content, Mapping):
            return with_files({key: content}, _reader(path.parent))[key]
        return content

    return read


def _text(source: str, key: str = "") -> str:
    from training.spec import Problem, SpecError

    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError([Problem(key=key, message=f"cannot read {source}: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise SpecError([Problem(key=key, message=f"{source} is not text in UTF-8")]) from None
