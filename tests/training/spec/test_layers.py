from __future__ import annotations

from typing import Any

import pytest

from training.spec import SpecError
from training.spec.layers import is_override, merged, overridden, resolved


def test_a_later_document_wins_key_by_key() -> None:
    earlier = {
        "trainer": {"max_epochs": 1, "devices": 2},
        "model": {"class_path": "a.B", "init_args": {"x": 1}},
    }
    later = {"trainer": {"max_epochs": 5}, "model": {"init_args": {"y": 2}}}

    assert merged(earlier, later) == {
        "trainer": {"max_epochs": 5, "devices": 2},
        "model": {"class_path": "a.B", "init_args": {"x": 1, "y": 2}},
    }


def test_another_class_does_not_inherit_arguments() -> None:
    earlier = {"class_path": "a.B", "init_args": {"x": 1}, "interval": "step"}

    assert merged(earlier, {"class_path": "a.C"}) == {"class_path": "a.C"}
    assert merged(earlier, {"class_path": "a.B", "init_args": {"y": 1}})["init_args"] == {"x": 1, "y": 1}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--trainer.max_epochs=5", True),
        ("--model", True),
        ("--model.lr", True),
        ("--resources.workers", True),
        ("--seed_everything=3", True),
        ("--set", False),
        ("--code", False),
        ("--follow", False),
        ("config.yaml", False),
        ("-f", False),
    ],
)
def test_overrides_are_told_from_options(word: str, expected: bool) -> None:
    assert is_override(word) == expected


@pytest.mark.parametrize(
    ("document", "overrides", "expected"),
    [
        (
            {"trainer": {"devices": 2}},
            [("trainer.max_epochs", 5)],
            {"trainer": {"devices": 2, "max_epochs": 5}},
        ),
        (
            {"model": {"class_path": "a.B", "init_args": {"x": 1}}},
            [("model.lr", 2), ("model.init_args.x", 3)],
            {"model": {"class_path": "a.B", "init_args": {"x": 3, "lr": 2}}},
        ),
        (
            {"model": {"lr": 1}},
            [("model.lr", 2), ("model", "a.B")],
            {"model": {"class_path": "a.B", "init_args": {"lr": 2}}},
        ),
        (
            {"model": {"class_path": "a.B", "init_args": {"x": 1}}},
            [("model", "a.C"), ("model.lr", 2)],
            {"model": {"class_path": "a.C", "init_args": {"lr": 2}}},
        ),
        (
            {},
            [("optimizer", "Adam"), ("optimizer.lr", 2)],
            {"optimizer": {"class_path": "Adam", "init_args": {"lr": 2}}},
        ),
        (
            {"trainer": {"callbacks": ["A"]}},
            [("trainer.callbacks+", "B")],
            {"trainer": {"callbacks": ["A", "B"]}},
        ),
        ({"trainer": {"callbacks": ["A"]}}, [("trainer.callbacks", None)], {"trainer": {"callbacks": None}}),
    ],
)
def test_overrides_in_lightnings_form(
    document: dict[str, Any], overrides: list[tuple[str, Any]], expected: dict[str, Any]
) -> None:
    assert overridden(document, overrides) == expected


def test_references_are_replaced_by_variables_and_values() -> None:
    document = {
        "trainer": {"max_epochs": "${EPOCHS}"},
        "data": {"folder": "${HOME_OF_DATA}/images", "size": "${trainer.devices}", "x": "${oc.env:NONE,0.5}"},
        "text": "$HOME ${not a name} {epoch}",
    } | {"trainer": {"max_epochs": "${EPOCHS}", "devices": 2}}

    found = resolved(document, {"EPOCHS": "3", "HOME_OF_DATA": "/data"})

    assert found["trainer"] == {"max_epochs": 3, "devices": 2}
    assert found["data"] == {"folder": "/data/images", "size": 2, "x": 0.5}
    assert found["text"] == document["text"]


def test_a_reference_to_nothing_is_named_with_its_key() -> None:
    with pytest.raises(SpecError, match=r"data\.folder: \$\{DATA\}: DATA is not set"):
        resolved({"data": {"folder": "${DATA}"}}, {})
