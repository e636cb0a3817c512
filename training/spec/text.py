"""The YAML text of a spec, and assignments to its keys."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import yaml

from training.spec.errors import Problem, SpecError


def load_yaml(text: str) -> object:
    """Parses YAML, of which JSON is a subset. Numbers like 1e-3 are floats, as in YAML 1.2.

    Does not validate the result. Raises SpecError with the line of a syntax error.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise SpecError([Problem(key="", message=f"neither YAML nor JSON: {where}")]) from None
    except (ValueError, RecursionError) as error:  # an impossible date, unbounded nesting
        raise SpecError([Problem(key="", message=f"neither YAML nor JSON: {error}")]) from None


def override(data: object, assignments: Iterable[str]) -> object:
    """Returns a copy of `data` with each `key.path=value` applied in order; values are YAML.

    Raises SpecError if an assignment has no "=", an empty key, or a value that is not YAML.
    """
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise SpecError([Problem(key=path, message=f"write key.path=value, not {assignment!r}")])
        data = _replaced(data, keys, load_yaml(value))
    return data


def _replaced(data: object, keys: list[str], value: object) -> object:
    if not keys:
        return value
    here = dict(data) if isinstance(data, Mapping) else {}
    return {**here, keys[0]: _replaced(here.get(keys[0]), keys[1:], value)}


_MERGE = "tag:yaml.org,2002:merge"
_MOST_KEYS = 10_000


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's floats (PyYAML reads 1e-3 as a string), and without dates.

    Keys that are integers become text, as in JSON. A repeated key is an error. Nested merge keys (<<) grow
    exponentially, a few hundred bytes can take minutes to load, so the number of merged keys is limited.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._flat: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if id(node) in self._flat:
            return
        self._flat.add(id(node))
        self._raise_for_repeated_key(key for key, _ in node.value if key.tag != _MERGE)
        super().flatten_mapping(node)
        if len(node.value) > _MOST_KEYS:
            problem = f"merges (<<) give a mapping more than {_MOST_KEYS:,} keys"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        return {str(key) if type(key) is int else key: value for key, value in mapping.items()}

    def _raise_for_repeated_key(self, nodes: Iterable[yaml.Node]) -> None:
        seen = set()
        for node in nodes:
            if (key := self._key(node)) in seen:
                problem = f"the key {key!r} occurs twice in one mapping; keep one of them"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            seen.add(key)

    def _key(self, node: yaml.Node) -> Hashable:
        key = self.construct_object(node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "found unhashable key", node.start_mark)
        return str(key) if type(key) is int else key


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$", re.I),
    list("-+.0123456789"),
)
