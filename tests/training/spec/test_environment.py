from __future__ import annotations

from typing import Any

import pytest

from tests.training.spec.test_spec import make_spec, problems_of


def test_variables_are_text_by_name() -> None:
    variables = {"DATA_ROOT": "/data", "_x1": "", "CUDA_LAUNCH_BLOCKING": "1", "PLATFORM": "a", "LDAP": "b"}

    assert make_spec(environment={"variables": variables}).environment.variables == variables


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("SYNCBN_API_KEY", "choose another name"),
        ("RAY_ADDRESS", "omit it"),
        ("RANK", "resources.workers"),
        ("WORLD_SIZE", "resources.workers"),
        ("MASTER_ADDR", "omit it"),
        ("LD_PRELOAD", "where the workers start"),
        ("PYTHONPATH", "--code"),
        ("PYTHONHASHSEED", "in your code"),
        ("OMP_NUM_THREADS", "resources.cpus_per_worker"),
        ("MKL_NUM_THREADS", "resources.cpus_per_worker"),
        ("CUDA_VISIBLE_DEVICES", "resources.gpus_per_worker"),
        ("PL_TRAINER_MAX_EPOCHS", "`trainer`"),
        ("PL_GLOBAL_SEED", "training.seed"),
        ("TORCH_DISTRIBUTED_DEBUG", "in your code"),
        ("MLFLOW_TRACKING_URI", "`tracking`"),
        ("1A", "digits"),
        ("A=B", "letters"),
        ("", "letters"),
        ("É", "letters"),
        ("A" * 201, "200 characters"),
    ],
)
def test_a_name_that_would_do_nothing_or_harm_is_refused_with_the_way_out(name: str, way_out: str) -> None:
    problems = problems_of(environment={"variables": {name: "x"}})

    assert list(problems) == [f"environment.variables.{name[:80]}"]
    assert way_out in problems[f"environment.variables.{name[:80]}"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1, 'write it in quotes: "1"'),
        (True, 'write it in quotes: "true"'),
        (None, "string"),
        ("x" * 32_769, "at most 32768"),
        ("a\0b", "not text"),
        ("\ud800", "not text"),
    ],
)
def test_a_value_that_no_variable_can_have_is_refused(value: Any, said: str) -> None:
    (message,) = problems_of(environment={"variables": {"A": value}}).values()

    assert said in message


def test_there_is_a_bound_on_their_number() -> None:
    problems = problems_of(environment={"variables": {f"A{number}": "" for number in range(101)}})

    assert "100" in problems["environment.variables"]


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"secrets": ["A", "LD_PRELOAD"]}, "environment.secrets.1"),
        ({"secrets": ["A", "A"]}, "environment.secrets"),
        ({"secrets": ["A"], "variables": {"A": "1"}}, "environment.variables.A"),
    ],
)
def test_secrets_are_names_of_variables_each_once(given: dict[str, Any], key: str) -> None:
    assert list(problems_of(environment=given)) == [key]


@pytest.mark.parametrize(
    ("requirements", "key", "said"),
    [
        (["monai==1.5.0", "-e ./mine"], "environment.requirements.1", "without -e"),
        (["-r more.txt"], "environment.requirements.0", "name the file alone"),
        (["  "], "environment.requirements.0", "empty"),
        (["a\nb"], "environment.requirements.0", "one line"),
        (["--index-url https://me:secret@host/simple"], "environment.requirements.0", "environment.secrets"),
        (["a @ https://token@host/a.whl"], "environment.requirements.0", "environment.secrets"),
        ("/etc/requirements.txt", "environment.requirements", "not the path"),
        ("../requirements.txt", "environment.requirements", "not the path"),
        (["a"] * 201, "environment.requirements", "at most 200"),
        (3, "environment.requirements", ""),
    ],
)
def test_requirements_that_cannot_be_installed_or_kept_are_refused(
    requirements: Any, key: str, said: str
) -> None:
    problems = problems_of(environment={"requirements": requirements})

    assert said in problems[key]


def test_requirements_are_lines_of_pip_or_a_file() -> None:
    lines = ["monai==1.5.0", "--index-url https://me:${TOKEN}@host/simple", "a @ git+ssh://git@host/a.git@v1"]

    given = {"requirements": lines, "secrets": ["TOKEN"]}
    assert make_spec(environment=given).environment.requirements == lines
    assert make_spec(environment={"requirements": "sub/r.txt"}).environment.requirements == "sub/r.txt"


def test_a_variable_in_a_requirement_is_a_secret_of_the_spec() -> None:
    line = "demo @ https://user:${TOKEN}@host/demo-1.0.tar.gz"

    found = problems_of(environment={"requirements": [line]})
    assert "is none of environment.secrets" in found["environment.requirements.0"]
    assert make_spec(environment={"requirements": [line], "secrets": ["TOKEN"]})
