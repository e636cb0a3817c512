from __future__ import annotations

import sys
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest

from training.errors import BuildError
from training.model.instantiate import construct, locate
from training.spec import ClassSpec


def spec(class_path: str, **init_args: Any) -> ClassSpec:
    return ClassSpec(class_path=class_path, init_args=init_args)


def takes_two(first: object, *, second: object = None) -> tuple[object, object]:
    return first, second


def takes_tables(
    numbers: list[float], rows: dict[str, list[float]] | None = None, mixed: list[float] | str = ""
) -> tuple[object, ...]:
    return numbers, rows, mixed


def fails(message: str) -> None:
    raise RuntimeError(message)


HERE = __name__


def test_a_class_is_constructed_with_its_arguments() -> None:
    assert construct(spec("collections.Counter", a=2), "model") == Counter(a=2)


def test_what_is_given_by_the_caller_comes_before_the_arguments_of_the_spec() -> None:
    assert construct(spec(f"{HERE}.takes_two", second=2), "optimizer", 1) == (1, 2)


def test_a_value_that_is_a_class_path_is_constructed_first() -> None:
    inner = {
        "class_path": "collections.OrderedDict",
        "init_args": {"x": {"class_path": "collections.Counter"}},
    }

    made = construct(spec(f"{HERE}.takes_two", first=inner), "model")

    assert made == (OrderedDict(x=Counter()), None)
    assert type(made[0]["x"]) is Counter


def test_a_long_table_of_the_right_type_is_given_as_it_is() -> None:
    """The parser would need hours for this one."""
    numbers, rows = [float(each) for each in range(100_000)], {"a": list(range(100_000))}

    made = construct(spec(f"{HERE}.takes_tables", numbers=numbers, rows=rows, mixed=numbers), "model")

    assert made == (numbers, rows, numbers)
    assert all(type(each) is float for each in made[1]["a"])
    whole, _, _ = construct(spec(f"{HERE}.takes_tables", numbers=list(range(100_000))), "model")
    assert all(type(each) is float for each in whole)


@pytest.mark.parametrize(
    ("given", "made"),
    [([1, 2.5], [1.0, 2.5]), ([], []), (["1"], [1.0])],
    ids=["integers", "empty", "text"],
)
def test_a_table_of_another_type_is_converted(given: list[object], made: list[float]) -> None:
    found, _, _ = construct(spec(f"{HERE}.takes_tables", numbers=given), "model")

    assert found == made
    assert all(type(each) is float for each in found)


def test_a_table_that_cannot_be_converted_is_refused_by_its_key() -> None:
    with pytest.raises(BuildError, match=r"model\.init_args\.numbers"):
        construct(spec(f"{HERE}.takes_tables", numbers=[1.0, "x"]), "model")


def test_a_mapping_with_other_keys_beside_class_path_is_left_as_it_is() -> None:
    value = {"class_path": "collections.Counter", "other": 1}

    assert construct(spec(f"{HERE}.takes_two", first=value), "model") == (value, None)


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("nowhere.Model", "there is no module 'nowhere' in the uploaded code or the environment"),
        ("torch.nnn.Linear", "there is no module 'torch.nnn'"),
        ("collections.Conter", r"module 'collections' has no 'Conter'; did you mean collections.Counter\?"),
        ("collections.zzzzzz", "module 'collections' has no 'zzzzzz'$"),
        ("math.pi", "math.pi is a float, not a class"),
    ],
)
def test_a_class_path_that_leads_nowhere_is_refused_at_its_key(class_path: str, message: str) -> None:
    with pytest.raises(BuildError, match=message) as caught:
        construct(spec(class_path), "model")

    assert caught.value.key == "model.class_path"


@pytest.mark.parametrize(
    ("init_args", "hint"),
    [
        ({"frist": 1}, r"did you mean first\?"),
        ({"first": 1, "zzzz": 2}, "unexpected keyword argument 'zzzz'; it takes"),
        ({}, r"missing a required argument: 'first'; it takes \(first"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_what_would(init_args: dict[str, Any], hint: str) -> None:
    with pytest.raises(BuildError, match=hint) as caught:
        construct(spec(f"{HERE}.takes_two", **init_args), "model")

    assert caught.value.key == "model.init_args"


def test_a_nested_mistake_is_named_by_its_whole_key() -> None:
    inner = {"class_path": "collections.Conter"}

    with pytest.raises(BuildError) as caught:
        construct(spec(f"{HERE}.takes_two", first=inner), "model")

    assert caught.value.key == "model.init_args.first.class_path"


def test_what_the_constructor_raises_passes_through() -> None:
    with pytest.raises(RuntimeError, match="own words"):
        construct(spec(f"{HERE}.fails", message="own words"), "model")


def test_a_module_that_lacks_one_of_its_own_imports_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_more.py").write_text("import not_installed_here\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        locate("needs_more.Model", "model.class_path")

    sys.modules.pop("needs_more", None)
