from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import nullcontext
from typing import Any, get_args

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from training.spec import Norm, Spec, SpecError, flat, load_yaml, override, parse_spec, read_spec, shares

SHORTEST: dict[str, Any] = {
    "model": {"class_path": "training.models.MLP"},
    "data": {"class_path": "training.data.Digits"},
}


def make_spec(**keys: Any) -> Spec:
    return parse_spec(SHORTEST | keys)


def problems_of(**keys: Any) -> dict[str, str]:
    """The message at each key of a spec that is refused."""
    with pytest.raises(SpecError) as caught:
        make_spec(**keys)
    assert str(caught.value)
    return {problem.key: problem.message for problem in caught.value.problems}


def test_shortest_spec_is_a_model_and_data_and_the_rest_has_defaults() -> None:
    assert make_spec().model_dump() == {
        "name": "MLP",
        "model": {"class_path": "training.models.MLP", "init_args": {}},
        "data": {"class_path": "training.data.Digits", "init_args": {}},
        "norm": {"kind": "sync_batch_norm", "group": "world", "observe_every": None},
        "loss": {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {}},
        "metrics": {
            "accuracy": {
                "class_path": "torchmetrics.classification.MulticlassAccuracy",
                "init_args": {"average": "micro"},
            }
        },
        "optimizer": None,
        "lr_scheduler": None,
        "training": {
            "global_batch_size": 32,
            "loader_batches": None,
            "eval_batch_size": None,
            "max_epochs": 10,
            "max_steps": None,
            "precision": "32-true",
            "seed": 0,
            "drop_last": False,
            "accumulate_grad_batches": 1,
            "sampler": "global",
            "checkpoint": {
                "every_steps": None,
                "every_minutes": 5,
                "keep_last": 2,
                "monitor": "val_loss",
                "mode": "min",
                "deliver": "last",
            },
            "hang_seconds": 300,
            "reproducible": "curve",
            "shards": None,
        },
        "trainer": {},
        "start_from": None,
        "resources": {
            "workers": 1,
            "cpus_per_worker": 1,
            "gpus_per_worker": 0,
            "memory_per_worker": None,
            "node_labels": {},
            "accelerator_type": None,
        },
        "time_limit": {"run": None, "queue": None},
        "environment": {"variables": {}, "secrets": [], "requirements": []},
        "priority": 0,
        "retries": 3,
        "tracking": {"experiment": "default", "register_as": None},
        "labels": {},
        "code": None,
        "source": None,
    }


def test_passes_that_a_global_batch_is_cut_into_cannot_be_more_than_its_samples() -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(training={"global_batch_size": 4, "accumulate_grad_batches": 5})

    (problem,) = caught.value.problems
    assert problem.key == "training.accumulate_grad_batches"
    assert "4 samples cannot be split into 5 micro-batches" in problem.message


def test_another_optimizer_does_not_inherit_the_arguments_of_the_default_one() -> None:
    spec = make_spec(optimizer={"class_path": "torch.optim.AdamW"})

    assert spec.model_dump()["optimizer"] == {"class_path": "torch.optim.AdamW", "init_args": {}}


@pytest.mark.parametrize("name", [None, ""])
def test_name_defaults_to_the_class_of_the_model(name: str | None) -> None:
    assert make_spec(name=name).name == "MLP"


def test_a_number_of_steps_stands_instead_of_epochs() -> None:
    training = make_spec(training={"max_steps": 7}).training

    assert (training.max_steps, training.max_epochs) == (7, None)


def test_a_spec_survives_the_way_through_json() -> None:
    spec = make_spec(resources={"workers": {"min": 1, "max": 4}}, training={"max_steps": 3})

    assert parse_spec(json.loads(spec.model_dump_json(exclude_unset=True))) == spec


def test_an_unknown_key_is_named_whatever_it_looks_like() -> None:
    assert "known here" in problems_of(trainer={"[": None})["trainer.["]


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_what_is_no_mapping_is_refused_in_plain_words(data: object) -> None:
    with pytest.raises(SpecError, match="a spec is a mapping with model and data"):
        parse_spec(data)


def test_every_missing_key_is_named() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({"model": {}})

    assert [str(problem) for problem in caught.value.problems] == [
        "model.class_path: is required",
        "data: is required",
    ]


@pytest.mark.parametrize(
    ("keys", "key", "hint"),
    [
        ({"trainin": {}}, "trainin", "did you mean training?"),
        ({"training": {"max_epoch": 3}}, "training.max_epoch", "did you mean max_epochs?"),
        ({"resources": {"worker": 2}}, "resources.worker", "did you mean workers?"),
        ({"resources": {"workers": {"min": 1, "maxi": 2}}}, "resources.workers.maxi", "did you mean max?"),
        ({"optimizer": {"init_arg": {}}}, "optimizer.init_arg", "did you mean init_args?"),
        (
            {"metrics": {"f1": {"class_path": "a.b", "init_arg": {}}}},
            "metrics.f1.init_arg",
            "did you mean init_args?",
        ),
        ({"lr_scheduler": {"class_path": "a.b", "each": 1}}, "lr_scheduler.each", "known here: class_path"),
    ],
)
def test_an_unknown_key_names_the_nearest(keys: dict[str, Any], key: str, hint: str) -> None:
    message = problems_of(**keys)[key]

    assert message.startswith("unknown key; ")
    assert hint in message


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        *((name, False) for name in ("net", "net 2", "a_b-c.d", "ä", ".a", "a.")),
        *((name, True) for name in ("", " ", ".", "..", "..a", "a/b", "a:b", "/")),
    ],
)
def test_a_name_of_a_model_is_refused_where_mlflow_refuses_it(name: str, refused: bool) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_model_name

    for check, refusal in (
        (_validate_model_name, MlflowException),
        (lambda name: make_spec(tracking={"register_as": name}), SpecError),
    ):
        with pytest.raises(refusal) if refused else nullcontext():
            check(name)


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ({"name": 0}, "name", "should be a valid string; got 0"),
        ({"priority": "high"}, "priority", "should be a valid integer; got 'high'"),
        ({"training": {"seed": -1}}, "training.seed", "greater than or equal to 0; got -1"),
        ({"training": {"seed": 2**32}}, "training.seed", "less than 4294967296"),
        ({"training": {"max_epochs": 0}}, "training.max_epochs", "0 epochs train nothing; give at least 1"),
        ({"training": {"max_epochs": "3"}}, "training.max_epochs", "valid integer; got '3'"),
        ({"training": {"max_epochs": True}}, "training.max_epochs", "valid integer; got True"),
        ({"training": {"precision": "8"}}, "training.precision", "'64-true', '32-true'"),
        ({"resources": {"workers": "two"}}, "resources.workers", "a mapping {min: 1, max: 4}; got 'two'"),
        ({"resources": {"workers": 0}}, "resources.workers", "got 0"),
        ({"resources": {"cpus_per_worker": 0}}, "resources.cpus_per_worker", "greater than 0"),
        ({"resources": {"gpus_per_worker": float("nan")}}, "resources.gpus_per_worker", "finite"),
        (
            {"model": {"class_path": "my-models.MLP"}},
            "model.class_path",
            "a dotted path such as package.module.Class",
        ),
        ({"model": 3}, "model", "got 3"),
        ({"norm": {"group": 0}}, "norm.group", "got 0"),
        ({"norm": {"observe_every": 0}}, "norm.observe_every", "greater than or equal to 1; got 0"),
        ({"norm": {"observe_every": "often"}}, "norm.observe_every", "valid integer; got 'often'"),
        ({"tracking": {"experiment": " "}}, "tracking.experiment", "' ' is not a name of an experiment"),
        ({"tracking": {"experiment": "a\nb"}}, "tracking.experiment", "no line breaks"),
        ({"tracking": {"register_as": "team/net:1"}}, "tracking.register_as", "for example 'team-net-1'"),
        ({"tracking": {"register_as": "/"}}, "tracking.register_as", "choose another name"),
        ({"tracking": {"register_as": "a\0"}}, "tracking.register_as", "or omit this key"),
        ({"tracking": {"register_as": "x" * 257}}, "tracking.register_as", "at most 256 characters"),
        ({"labels": {"team": 3}}, "labels.team", "valid string; got 3"),
        ({"code": "abc"}, "code", "got 'abc'"),
        ({"data": {"class_path": "x" * 600}}, "data.class_path", "..."),
    ],
)
def test_a_wrong_value_is_refused_at_its_key_with_what_was_given(
    keys: dict[str, Any], key: str, message: str
) -> None:
    assert message in problems_of(**keys)[key]


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ({"training": {"max_epochs": -1}}, "training.max_epochs", "never ends"),
        ({"resources": {"workers": {"min": 3, "max": 2}}}, "resources.workers", "greater than max"),
        (
            {"training": {"global_batch_size": 3}, "resources": {"workers": {"min": 1, "max": 4}}},
            "training.global_batch_size",
            "3 samples cannot be shared by 4 workers",
        ),
        ({"norm": {"group": 2}, "resources": {"workers": 3}}, "norm.group", "choose a divisor"),
        ({"training": {"precision": "16-mixed"}}, "training.precision", "needs a GPU"),
        *(
            (
                {"norm": {"kind": kind, "observe_every": 20}},
                "norm.observe_every",
                f"is for sync_batch_norm and batch_renorm, and norm.kind is {kind}; omit this key",
            )
            for kind in ("batch_norm", "group_norm", "layer_norm", "keep")
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(keys: dict[str, Any], key: str, message: str) -> None:
    assert message in problems_of(**keys)[key]


OPTIONS = {
    "group": ("node", "sync_batch_norm and batch_renorm"),
    "observe_every": (20, "sync_batch_norm and batch_renorm"),
    "samples": (4, "ghost_batch_norm"),
    "groups": (4, "group_norm and evonorm_s0"),
    "weight_standardization": (True, "group_norm"),
    "r_max": (2.0, "batch_renorm"),
    "d_max": (2.0, "batch_renorm"),
    "plain_steps": (4, "batch_renorm"),
    "r_steps": (50_000, "batch_renorm"),
    "d_steps": (50_000, "batch_renorm"),
}


@pytest.mark.parametrize("key", OPTIONS)
def test_an_option_of_a_normalisation_is_refused_by_name_beside_another_kind(key: str) -> None:
    value, kinds = OPTIONS[key]
    for kind in get_args(Norm.model_fields["kind"].annotation):
        norm = {"kind": kind, key: value}
        if kind in kinds.split(" and "):
            assert make_spec(norm=norm).model_dump()["norm"][key] == value
        else:
            refused = f"is for {kinds}, and norm.kind is {kind}; omit this key"
            assert problems_of(norm=norm) == {f"norm.{key}": refused}
            assert key not in make_spec(norm={"kind": kind}).model_dump()["norm"]


@pytest.mark.parametrize("kind", get_args(Norm.model_fields["kind"].annotation))
def test_a_normalisation_with_its_defaults_is_read_back(kind: str) -> None:
    norm = make_spec(norm={"kind": kind}).norm

    assert Norm.model_validate(norm.model_dump()) == norm
    # Earlier versions wrote these two with every kind.
    assert Norm.model_validate({"kind": kind, "group": "world", "observe_every": None}) == norm


@pytest.mark.parametrize(
    ("norm", "key", "message"),
    [
        ({"kind": "ghost_batch_norm", "samples": 1}, "norm.samples", "greater than or equal to 2"),
        ({"kind": "group_norm", "groups": 0}, "norm.groups", "greater than or equal to 1"),
        ({"kind": "batch_renorm", "r_max": 0.5}, "norm.r_max", "greater than or equal to 1"),
        ({"kind": "batch_renorm", "r_steps": 9}, "norm.r_steps", "9 is less than norm.plain_steps, 5000"),
        ({"kind": "batch_renorm", "plain_steps": 30_000}, "norm.d_steps", "25000 is less than"),
        ({"kind": "instance"}, "norm.kind", "instance_norm"),
    ],
)
def test_a_value_of_a_normalisation_that_is_not_possible_is_refused(
    norm: dict[str, Any], key: str, message: str
) -> None:
    assert message in problems_of(norm=norm)[key]


@pytest.mark.parametrize("kind", ["batch_norm", "ghost_batch_norm"])
def test_a_normalisation_that_depends_on_the_workers_is_a_note(kind: str) -> None:
    spec = SHORTEST | {"norm": {"kind": kind}}

    (note,) = read_spec(spec | {"resources": {"workers": 2}})[1]
    assert note.startswith(f"norm.kind {kind} normalises within each worker's share")
    assert read_spec(spec)[1] == []


def test_a_mapping_of_workers_is_judged_as_a_mapping() -> None:
    problems = problems_of(resources={"workers": {"min": 1, "maxi": 2}})

    assert problems == {
        "resources.workers.max": "is required",
        "resources.workers.maxi": "unknown key; did you mean max?",
    }


def test_half_precision_is_allowed_with_a_gpu() -> None:
    spec = make_spec(training={"precision": "16-mixed"}, resources={"gpus_per_worker": 0.5})

    assert spec.training.precision == "16-mixed"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-2.5e+2", -250.0),
        ("3", 3),
        ("'1e-3'", "1e-3"),
        ("32-true", "32-true"),
        ("2024-01-01", "2024-01-01"),
        ("null", None),
        ('{"a": [1, true]}', {"a": [1, True]}),
        ("{0: 2, -1: {1_0: 3}}", {"0": 2, "-1": {"10": 3}}),
    ],
)
def test_yaml_values_are_what_they_look_like(text: str, value: object) -> None:
    loaded = load_yaml(text)

    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("model: {class_path: a.b\ndata: c", "line 2"),
        ("a: b: c", "line 1"),
        ("\tname: x", "line 1"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("model: !!python/name:os.system x", "line 1"),
        ("{[1]: 2}", "line 1"),
        ("a: 1\nb: 2\na: 3", "the key 'a' occurs twice in one mapping"),
        ("a: {b: {c: 1,\n c: 2}}", "line 2"),
        ("{1: a, '1': b}", "the key '1' occurs twice in one mapping"),
        ("labels:\n  on: x", "line 2"),
        ("a: {<<: {b: 1, b: 2}}", "the key 'b' occurs twice in one mapping"),
        ("a: {<<: {b: 1},\n <<: {c: 2}}", "line 2"),
        ("a: {<<: 3}", "<< takes a mapping, or a list of mappings"),
        ("[" * 5000, "neither YAML nor JSON"),
    ],
)
def test_broken_yaml_is_refused_with_its_line(text: str, where: str) -> None:
    with pytest.raises(SpecError, match="neither YAML nor JSON") as caught:
        load_yaml(text)

    assert where in str(caught.value)


def test_merge_keys_bring_what_they_bring_with_pyyaml() -> None:
    text = """
        a: &a {x: 1, y: 2}
        b: &b {<<: *a, y: 3, z: {<<: {w: 4}}}
        c: {y: 5, <<: [*a, *b, {v: <<}]}
        d: {<<: []}
        e: &e {<<: [{x: 1}], inner: {<<: *e}}
        """
    plain = yaml.safe_load(text.replace("{v: <<}", "{v: '<<'}"))

    loaded: Any = load_yaml(text)

    assert loaded["e"].pop("inner").keys() == plain["e"].pop("inner").keys()
    assert loaded == plain


def test_nested_merge_keys_are_refused_before_they_take_long() -> None:
    keys = "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: 1}}\n" for n in range(1, 200))

    with pytest.raises(SpecError, match="<< brings more than 10,000 keys"):
        load_yaml(f"a0: &a0 {{}}\n{keys}")


def test_overrides_reach_into_mappings_and_read_their_values_as_yaml() -> None:
    data = {"training": {"max_epochs": 3, "seed": 1}, "resources": {"workers": 2}}

    changed = override(
        data,
        [
            "training.max_epochs=null",
            "training.max_steps=5",
            "optimizer.init_args.lr=1e-3",
            "resources.workers={min: 1, max: 2}",
            "name=a=b",
            "resources.gpus_per_worker=",
        ],
    )

    assert changed == {
        "training": {"max_epochs": None, "seed": 1, "max_steps": 5},
        "optimizer": {"init_args": {"lr": 1e-3}},
        "resources": {"workers": {"min": 1, "max": 2}, "gpus_per_worker": None},
        "name": "a=b",
    }
    assert data == {"training": {"max_epochs": 3, "seed": 1}, "resources": {"workers": 2}}


def test_an_override_replaces_an_item_of_a_list() -> None:
    data = {"callbacks": [{"patience": 1}, {"patience": 2}]}

    assert override(data, ["callbacks.1.patience=7"]) == {"callbacks": [{"patience": 1}, {"patience": 7}]}
    assert data == {"callbacks": [{"patience": 1}, {"patience": 2}]}
    assert override({}, ["callbacks.2.patience=7"]) == {"callbacks": {"2": {"patience": 7}}}


@pytest.mark.parametrize("assignment", ["training.max_steps", "=3", "training..seed=3", ""])
def test_an_override_of_another_form_is_refused(assignment: str) -> None:
    with pytest.raises(SpecError, match=r"write key\.path=value"):
        override({}, [assignment])


def test_an_override_with_a_broken_value_is_refused() -> None:
    with pytest.raises(SpecError, match="neither YAML nor JSON"):
        override({}, ["name=[1"])


def references(schema: object) -> set[str]:
    if isinstance(schema, dict):
        found = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
        return found.union(*(references(value) for value in schema.values()))
    if isinstance(schema, list):
        return set().union(*(references(value) for value in schema))
    return set()


def test_json_schema_is_complete_and_always_the_same() -> None:
    schema = Spec.model_json_schema()

    assert json.loads(json.dumps(schema, allow_nan=False)) == Spec.model_json_schema()
    assert schema["oneOf"] == [{"required": ["model", "data"]}, {"required": ["script"]}]
    assert set(schema["properties"]) == set(Spec.model_fields)
    assert references(schema) == {f"#/$defs/{name}" for name in schema["$defs"]}
    for name, part in schema["$defs"].items():
        assert part["additionalProperties"] is False, name


def test_synchronized_layers_are_observed_where_the_spec_asks_for_it_and_the_schema_says_so() -> None:
    assert make_spec().norm.observe_every is None
    assert make_spec(norm={"observe_every": 20}).norm.observe_every == 20
    key = Spec.model_json_schema()["$defs"]["Norm"]["properties"]["observe_every"]
    assert key["anyOf"] == [{"minimum": 1, "type": "integer"}, {"type": "null"}]
    assert key["default"] is None


def test_json_schema_tells_a_spec_from_what_is_none() -> None:
    jsonschema.Draft202012Validator.check_schema(Spec.model_json_schema())
    validator = jsonschema.Draft202012Validator(Spec.model_json_schema())

    assert validator.is_valid(SHORTEST)
    assert validator.is_valid(make_spec().model_dump(mode="json"))
    assert validator.is_valid(parse_spec({"script": {"path": "train.py"}}).model_dump(mode="json"))
    assert not validator.is_valid({"model": SHORTEST["model"]})
    assert not validator.is_valid(SHORTEST | {"script": {"path": "train.py"}})
    assert not validator.is_valid(SHORTEST | {"resources": {"workers": 0}})


def test_specs_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_spec().training.seed = 3


def parts(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


def test_flat_gives_every_value_as_text_under_its_dotted_key() -> None:
    spec = make_spec(
        resources={"workers": {"min": 1, "max": 2}},
        optimizer={"init_args": {"betas": [0.9, 0.99], "foo": {}}},
        labels={"team": "vision"},
        source={"user": "ada"},
    )

    found = flat(spec)

    assert found["resources.workers.min"] == "1"
    assert found["optimizer.init_args.betas"] == "[0.9, 0.99]"
    assert found["optimizer.init_args.foo"] == "{}"
    assert found["training.max_epochs"] == "10"
    assert found["metrics.accuracy.init_args.average"] == "micro"
    assert "training.max_steps" not in found
    assert {key.partition(".")[0] for key in found} == parts(Spec) - {
        *("lr_scheduler", "code", "trainer", "time_limit", "start_from"),  # empty by default
        *("labels", "source", "script"),
    }
    assert not {"model.init_args", "resources.node_labels"} & found.keys()


@given(batch_size=st.integers(0, 10_000), world_size=st.integers(1, 300))
def test_shares_are_the_whole_batch_cut_as_evenly_as_can_be(batch_size: int, world_size: int) -> None:
    sizes = shares(batch_size, world_size)

    assert len(sizes) == world_size
    assert sum(sizes) == batch_size
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_importing_the_spec_loads_nothing_heavy() -> None:
    code = "import sys, training.spec, training.errors; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert not {"torch", "numpy", "lightning", "ray", "mlflow", "sync_bn"} & set(output.split())


@pytest.mark.parametrize(
    ("given", "run", "queue"),
    [
        ("2h", 7200, None),
        ("1d12h", 129_600, None),
        ("1w", 604_800, None),
        (90, 90, None),
        ({"queue": "30m"}, None, 1800),
        ({"run": "45s", "queue": 2.5}, 45, 2.5),
    ],
)
def test_a_time_limit_alone_is_that_of_the_run(given: Any, run: float | None, queue: float | None) -> None:
    limit = make_spec(time_limit=given).time_limit

    assert (limit.run, limit.queue) == (run, queue)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"time_limit": "2 hours"}, "'2 hours' is not a duration; write for example 2h"),
        ({"time_limit": {"run": 0}}, "greater than 0"),
        (
            {"resources": {"memory_per_worker": "lots"}},
            "'lots' is no amount of memory; write for",
        ),
        ({"resources": {"memory_per_worker": "1MB"}}, "67108864"),
        ({"resources": {"node_labels": {"zone": "a b"}}}, "node_labels"),
        (
            {"resources": {"node_labels": {"ray.io/accelerator-type": "A100"}, "accelerator_type": "H100"}},
            "accelerator_type is H100 and node_labels has ray.io/accelerator-type: A100",
        ),
    ],
)
def test_a_limit_or_a_need_that_means_nothing_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        make_spec(**section)


def test_memory_is_read_with_its_unit() -> None:
    assert make_spec(resources={"memory_per_worker": "1.5GiB"}).resources.memory_per_worker == 1.5 * 2**30
