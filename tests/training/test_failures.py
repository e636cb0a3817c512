from __future__ import annotations

import pickle

import pytest

from training.failures import (
    BuildError,
    Hung,
    NonFiniteLoss,
    RankFailed,
    TrainingError,
    Verdict,
    read_verdict,
    without_verdict,
    write_verdict,
)

VERDICT: Verdict = {"type": "KeyError", "message": "two\nlines", "rank": 2}


def failed(error: Exception) -> RankFailed:
    try:
        raise error
    except Exception as caught:
        return RankFailed.of(caught, rank=2, step=7, when=12.5)


def test_a_failure_of_a_rank_travels_as_a_pickle_without_the_class_it_came_from() -> None:
    class OfTheUser(Exception):
        pass

    found = pickle.loads(pickle.dumps(failed(OfTheUser("what happened"))))

    assert isinstance(found, RankFailed)
    assert str(found) == "OfTheUser on rank 2: what happened"
    assert (found.rank, found.step, found.type_name) == (2, 7, "OfTheUser")
    assert (found.message, found.when) == ("what happened", 12.5)
    assert "raise error" in found.trace


@pytest.mark.parametrize(
    ("error", "lost_peer"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("CUDA out of memory"), False),
        (BuildError("model", "gloo"), False),
    ],
)
def test_a_rank_that_only_lost_a_peer_is_told_from_one_that_failed(error: Exception, lost_peer: bool) -> None:
    assert failed(error).lost_peer is lost_peer


def test_every_failure_is_a_training_error_and_survives_pickling() -> None:
    for error in (
        BuildError("model.class_path", "is not there"),
        NonFiniteLoss("nan"),
        Hung(1, 57, "rank 1 made no step"),
        failed(KeyError("x")).saying("came twice"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert isinstance(copy, TrainingError)
        assert str(copy) == str(error)


def test_the_last_verdict_of_a_log_counts_and_people_do_not_see_it() -> None:
    other: Verdict = {"type": "E", "message": "", "rank": None}
    log = f"step 1\n{write_verdict(other)}\nstep 2\n{write_verdict(VERDICT)}\n"

    assert read_verdict(log) == VERDICT
    assert without_verdict(log) == "step 1\nstep 2\n"
    assert read_verdict("step 1\n") is None
