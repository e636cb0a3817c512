from __future__ import annotations

from typing import Any

import pytest

from training.spec import SpecError
from training.spec.layers import is_override, merged, of_fit, overridden, resolved


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


def test_another_class_keeps_the_arguments() -> None:
    earlier = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1, "eps": 2}}

    assert merged(earlier, {"class_path": "torch.optim.SGD", "init_args": {"lr": 3}}) == {
        "class_path": "torch.optim.SGD",
        "init_args": {"lr": 3, "eps": 2},  # which SGD refuses by name when it is checked
    }


def test_the_section_for_fit_is_the_document() -> None:
    assert of_fit({"fit": {"trainer": {"devices": 2}}, "test": {}, "name": "x"}) == {
        "trainer": {"devices": 2},
        "name": "x",
    }
    assert of_fit({"fit": 3}) == {"fit": 3}


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
            {"model": {"class_path": "a.C", "init_args": {"x": 1, "lr": 2}}},
        ),
        (
            {"model": {"class_path": "a.B", "init_args": {"inner": {"class_path": "a.C"}}}},
            [("model.inner.width", 3)],
            {
                "model": {
                    "class_path": "a.B",
                    "init_args": {"inner": {"class_path": "a.C", "init_args": {"width": 3}}},
                }
            },
        ),
        (
            {},
            [("trainer.callbacks+", "A"), ("trainer.callbacks+", "B"), ("trainer.callbacks.patience", 3)],
            {"trainer": {"callbacks": ["A", {"class_path": "B", "init_args": {"patience": 3}}]}},
        ),
        (
            {},
            [("trainer.logger", "CSVLogger"), ("trainer.logger.save_dir", "x")],
            {"trainer": {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "x"}}}},
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
