from __future__ import annotations

import http.client

import pytest
import torch

from training.errors import BuildError, RunFailed, is_lost_peer, may_pass, message_of
from training.protocol import Exit, ExitRecord


def test_a_build_error_begins_with_the_key() -> None:
    assert str(BuildError("model.class_path", "there is no such thing")) == (
        "model.class_path: there is no such thing"
    )


def test_a_failed_run_says_which_rank_where_and_why_not_again() -> None:
    record = ExitRecord(rank=1, kind=Exit.ERROR, type="ValueError", message="no\nmore", step=7)

    said = str(RunFailed(record, "It came twice."))

    assert said == "rank 1 failed at step 7: ValueError: no\nIt came twice."


def test_a_message_has_the_notes_of_the_error() -> None:
    error = ValueError("of the user")
    error.add_note("and why")

    assert message_of(error) == "of the user\nand why"


def from_cause(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (
            RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
            True,
        ),
        (RuntimeError("of the user"), False),
        (ValueError("[../gloo/transport/tcp/pair.cc:534] as a user may write it"), False),
        (RuntimeError("see gloo/transport/tcp for details"), False),
        (
            from_cause(
                RuntimeError("the forward pass failed"), RuntimeError("[/gloo/transport/pair.cc] gone")
            ),
            True,
        ),
        (from_cause(RuntimeError("twice"), ValueError("of the user")), False),
    ],
)
def test_an_error_of_gloo_is_the_echo_of_another_rank_s(error: Exception, is_so: bool) -> None:
    assert is_lost_peer(error) is is_so


class EndpointConnectionError(Exception):
    """As libraries have them that do not derive from OSError."""


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (FileNotFoundError("/mnt/data/set.h5"), True),
        (TimeoutError(), True),
        (EndpointConnectionError(), True),
        (http.client.IncompleteRead(b""), True),
        (MemoryError(), True),
        (torch.OutOfMemoryError(), True),
        (from_cause(RuntimeError("the data set cannot be read"), PermissionError()), True),
        (ValueError("depth must be at least 1"), False),
        (AssertionError(), False),
        (KeyError("path"), False),
    ],
)
def test_what_comes_from_outside_may_pass(error: Exception, is_so: bool) -> None:
    assert may_pass(error) is is_so
