"""The YAML text of a spec, and assignments to its keys."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import yaml

from training.spec.errors import Problem, SpecError

_Pair = tuple[yaml.Node, yaml.Node]
_MERGE = "tag:yaml.org,2002:merge"
_MAX_MERGED = 10_000
MAX_NODES = 30_000
"""Maximum number of keys, values and aliases in a YAML document: PyYAML takes 0.1 ms for each."""

_NOT_OF_ITS_TAG = (ValueError, ArithmeticError, LookupError, AttributeError, TypeError)
"""What PyYAML's constructors raise for a value that is not of its explicit tag, such as `!!int ""`."""


def load_yaml(text: str) -> object:
    """Parses YAML, of which JSON is a subset. Numbers like 1e-3 are floats, as in YAML 1.2.

    Does not validate the result. Raises SpecError with the line of a syntax error.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise SpecError([Problem(key="", message=f"neither YAML nor JSON: {where}")]) from None
    except (*_NOT_OF_ITS_TAG, RecursionError) as error:  # unbounded nesting
        raise SpecError([Problem(key="", message=f"neither YAML nor JSON: {error}")]) from None


def override(data: object, assignments: Iterable[str]) -> object:
    """Returns a copy of `data` with each `key.path=value` applied in order; values are YAML.

    A number is an index where there is a list, as in trainer.callbacks.0.init_args.patience=3. Raises
    SpecError if an assignment has no "=", an empty key, or a value that is not YAML.
    """
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise SpecError([Problem(key=path, message=f"write key.path=value, not {assignment!r}")])
        data = replaced(data, keys, load_yaml(value))
    return data


def replaced(data: object, keys: Sequence[str], value: object, *, at: str = "") -> object:
    """Returns a copy of `data` with the value at the path `keys`; mappings on the way are made if need be.

    at: the path of `data` itself, for errors. Raises SpecError for a place that a list does not have.
    """
    if not keys:
        return value
    first, *rest = keys
    here_at = f"{at}.{first}" if at else first
    if isinstance(data, list):
        if not first.isdecimal() or (index := int(first)) >= len(data):
            found = f"has {len(data)} item{'s' if len(data) != 1 else ''}, counted from 0"
            raise SpecError([Problem(key=here_at, message=f"{first} is no place in a list; it {found}")])
        return [*data[:index], replaced(data[index], rest, value, at=here_at), *data[index + 1 :]]
    here = dict(data) if isinstance(data, Mapping) else {}
    return {**here, first: replaced(here.get(first), rest, value, at=here_at)}


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's floats (PyYAML reads 1e-3 as a string) and without dates.

    Keys are text: an integer becomes its decimal digits, and others are errors, as a repeated key is. Merge
    keys (<<) mean what they mean in PyYAML, which would keep every copy of a key: nested ones would grow
    exponentially.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._merged = self._composed = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Replaces the merge keys of a mapping by the keys that they bring. Refuses a repeated key."""
        own: dict[str, _Pair] = {}
        for key_node, value in node.value:
            if (key := self._key(key_node)) in own:
                raise _error(key_node, f"the key {key!r} occurs twice in one mapping; keep one of them")
            own[key] = (key_node, value)
        merge = [value for key_node, value in own.values() if key_node.tag == _MERGE]
        if merge:
            own = {key: pair for key, pair in own.items() if pair[0].tag != _MERGE}
            node.value = list(own.values())  # first, since what is merged may contain this mapping
            node.value = list((self._merged_pairs(merge[0]) | own).values())

    def _merged_pairs(self, merged: yaml.Node) -> dict[str, _Pair]:
        """Returns the keys and values of a mapping, or of a list of mappings in which earlier ones win."""
        pairs: dict[str, _Pair] = {}
        for mapping in reversed(merged.value) if isinstance(merged, yaml.SequenceNode) else [merged]:
            if not isinstance(mapping, yaml.MappingNode):
                raise _error(mapping, "<< takes a mapping, or a list of mappings")
            self.flatten_mapping(mapping)
            self._merged += len(mapping.value)
            if self._merged > _MAX_MERGED:
                raise _error(mapping, f"<< brings more than {_MAX_MERGED:,} keys; write them out")
            pairs |= {self._key(key_node): (key_node, value) for key_node, value in mapping.value}
        return pairs

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._composed += 1
        if self._composed > MAX_NODES:
            mark = self.get_mark()
            problem = f"has more than {MAX_NODES:,} keys, values and aliases; write it as JSON"
            raise yaml.composer.ComposerError(None, None, problem, mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except _NOT_OF_ITS_TAG:
            raise _error(node, f"the value is not one of its tag {node.tag.rpartition(':')[2]}") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if not isinstance(node, yaml.MappingNode):  # by its tag it is one
            raise _error(node, "the value is not a mapping")
        self.flatten_mapping(node)
        return {self._key(key): self.construct_object(value, deep=deep) for key, value in node.value}

    def _key(self, node: yaml.Node) -> str:
        key = self.construct_object(node, deep=True)
        if isinstance(key, str):
            return key
        if isinstance(key, int) and not isinstance(key, bool):
            return str(key)
        raise _error(node, f"the key {key!r} is not text; put it in quotes")


def _error(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$", re.I),
    list("-+.0123456789"),
)
_text_of = yaml.SafeLoader.construct_yaml_str
_Loader.yaml_constructors = {  # << and = where they are no merge keys
    **yaml.SafeLoader.yaml_constructors,
    _MERGE: _text_of,
    "tag:yaml.org,2002:value": _text_of,
}
