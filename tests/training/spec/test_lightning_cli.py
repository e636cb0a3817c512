"""Configurations of LightningCLI, read as specs."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from lightning.pytorch import Trainer

from training.spec import ARGUMENTS, Spec, SpecError, TrainerOptions, read_spec

BASE: dict[str, Any] = {
    "model": {"class_path": "lab.Net"},
    "data": {"class_path": "lab.Data", "init_args": {"batch_size": 4}},
}


def read(**keys: Any) -> tuple[Spec, list[str]]:
    return read_spec(BASE | keys)


def problems(**keys: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        read(**keys)
    return {problem.key: problem.message for problem in caught.value.problems}


def test_the_table_has_every_argument_of_the_installed_lightning() -> None:
    names = list(inspect.signature(Trainer).parameters)

    assert list(TrainerOptions.model_fields) == names
    assert list(ARGUMENTS) == names


def test_what_another_key_says_moves_there() -> None:
    spec, _ = read(
        seed_everything=7,
        trainer={
            "accelerator": "gpu",
            "devices": 4,
            "num_nodes": 2,
            "precision": "bf16",
            "max_epochs": 3,
            "max_steps": 50,
            "accumulate_grad_batches": 2,
            "sync_batchnorm": True,
            "enable_progress_bar": True,
            "default_root_dir": "logs",
        },
    )

    training = spec.training
    assert (training.seed, training.max_epochs, training.max_steps) == (7, 3, 50)
    assert (training.precision, training.accumulate_grad_batches) == ("bf16-mixed", 2)
    assert (training.global_batch_size, training.loader_batches) == (None, 8)
    assert (spec.resources.workers, spec.resources.gpus_per_worker) == (8, 1)
    assert spec.norm.kind == "sync_batch_norm"
    assert spec.trainer == TrainerOptions()


def test_what_is_honoured_stays_by_its_name() -> None:
    given = {"gradient_clip_val": 1.0, "limit_val_batches": 0.5, "deterministic": "warn"}

    spec, _ = read(trainer=given | {"devices": None})

    assert spec.trainer.model_dump() == given
    assert spec.model_dump()["trainer"] == given


def test_a_spec_that_was_read_reads_the_same_again() -> None:
    spec, _ = read(
        seed_everything=1,
        trainer={"devices": 2, "callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "x"}}]},
    )

    assert read_spec(spec.model_dump(mode="json"))[0] == spec


@pytest.mark.parametrize(
    ("devices", "batches"),
    [(None, 1), ("auto", 1), (-1, 1), ("-1", 1), (3, 3), ("3", 3), ([0, 1], 2), ("0,1", 2), ("1,", 1)],
)
def test_the_batch_is_that_of_the_devices(devices: Any, batches: int) -> None:
    spec, notes = read(trainer={"devices": devices})

    assert spec.training.loader_batches == spec.resources.workers == batches
    assert any("data's own loader" in note for note in notes)


def test_the_batch_stays_whatever_the_workers_are() -> None:
    spec, _ = read(trainer={"devices": 2}, resources={"workers": 3})

    assert (spec.training.loader_batches, spec.resources.workers) == (2, 3)


def test_a_global_batch_size_comes_before_that_of_the_devices() -> None:
    spec, _ = read(trainer={"devices": 2}, training={"global_batch_size": 64})

    assert (spec.training.global_batch_size, spec.training.loader_batches) == (64, None)


@pytest.mark.parametrize(
    ("precision", "accelerator", "expected"),
    [
        (16, "auto", "bf16-mixed"),
        ("16-mixed", "gpu", "16-mixed"),
        (64, "cpu", "64-true"),
        ("32", None, "32-true"),
    ],
)
def test_precisions_have_lightnings_names(precision: Any, accelerator: Any, expected: str) -> None:
    spec, notes = read(trainer={"precision": precision, "accelerator": accelerator})

    assert spec.training.precision == expected
    assert any("needs a GPU" in note for note in notes) == (expected == "bf16-mixed")


@pytest.mark.parametrize(
    ("trainer", "length"),
    [
        ({}, (1000, None)),
        ({"max_steps": 5}, (None, 5)),
        ({"max_epochs": -1, "max_steps": 5}, (-1, 5)),
        ({"max_time": "00:01:00:00"}, (-1, None)),
        ({"max_epochs": 2, "max_steps": -1}, (2, None)),
    ],
)
def test_a_configuration_is_as_long_as_with_lightning(
    trainer: dict[str, Any], length: tuple[int | None, int | None]
) -> None:
    training = read(seed_everything=True, trainer=trainer)[0].training

    assert (training.max_epochs, training.max_steps) == length


def test_an_mlflow_logger_names_the_experiment_and_the_run() -> None:
    loggers = [
        {"class_path": "MLFlowLogger", "init_args": {"experiment_name": "lab", "run_name": "first"}},
        {"class_path": "CSVLogger", "init_args": {"save_dir": "csv"}},
    ]

    spec, _ = read(trainer={"logger": loggers})

    assert (spec.tracking.experiment, spec.name) == ("lab", "first")
    assert spec.trainer.model_dump()["logger"] == [
        {"class_path": "MLFlowLogger", "init_args": {}, "dict_kwargs": {}},
        {"class_path": "CSVLogger", "init_args": {"save_dir": "csv"}, "dict_kwargs": {}},
    ]


def test_classes_may_be_given_by_path_alone_and_with_more_arguments() -> None:
    spec, _ = read_spec(
        {
            "seed_everything": 1,
            "model": {"class_path": "lab.Net", "init_args": {"a": 1}, "dict_kwargs": {"b": 2}},
            "data": "lab.Data",
            "optimizer": {"class_path": "Adam", "init_args": {"lr": 0.1}},
            "lr_scheduler": {"class_path": "StepLR", "init_args": {"step_size": 1}},
        }
    )

    assert spec.trained()[0].init_args == {"a": 1, "b": 2}
    assert spec.data is not None
    assert spec.data.class_path == "lab.Data"
    assert spec.optimizer is not None
    assert spec.optimizer.class_path == "torch.optim.Adam"
    assert spec.lr_scheduler is not None
    assert spec.lr_scheduler.class_path == "torch.optim.lr_scheduler.StepLR"


def test_the_section_of_fit_is_the_configuration() -> None:
    spec, _ = read_spec({"fit": {"seed_everything": 5, **BASE}, "test": {"ckpt_path": "x"}})

    assert spec.training.seed == 5


@pytest.mark.parametrize(
    ("trainer", "key", "message"),
    [
        ({"gradient_clip": 1}, "trainer.gradient_clip", r"did you mean gradient_clip_val\?"),
        ({"fast_dev_run": True}, "trainer.fast_dev_run", "limit_train_batches: 1"),
        ({"strategy": "fsdp"}, "trainer.strategy", "a job trains with DDP"),
        ({"accelerator": "tpu"}, "trainer.accelerator", "cpu or gpu"),
        ({"precision": "16-true"}, "trainer.precision", "is none of"),
        ({"use_distributed_sampler": False}, "trainer.use_distributed_sampler", "training.sampler: own"),
        ({"val_check_interval": "00:00:10:00"}, "trainer.val_check_interval", "is a time"),
        ({"plugins": [{"class_path": "SLURMEnvironment"}]}, "trainer.plugins.0", "find each other"),
        ({"model_registry": "x"}, "trainer.model_registry", "tracking.register_as"),
        ({"limit_train_batches": 1.5}, "trainer.limit_train_batches", "part of them, from 0.0 to 1.0"),
        ({"callbacks": [{"class_pth": "x"}]}, "trainer.callbacks.0.class_path", "is required"),
        ({"devices": "0"}, "trainer.devices", "no number of devices"),
        ({"devices": []}, "trainer.devices", "no number of devices"),
        (
            {"strategy": {"class_path": "DDPStrategy", "init_args": {"model_averaging_period": 3}}},
            "trainer.strategy",
            "model_averaging_period changes what is trained",
        ),
        ({"devices": "all"}, "trainer.devices", "no number of devices"),
        ({"devices": [0, 0]}, "trainer.devices", "no list of different ones"),
        ({"devices": [-1]}, "trainer.devices", "no list of different ones"),
        ({"devices": "0,0"}, "trainer.devices", "no list of different ones"),
        ({"strategy": "nonsense"}, "trainer.strategy", "nonsense is unknown; a job does what ddp or auto do"),
        ({"strategy": "ddp_nonsense"}, "trainer.strategy", "is unknown"),
        ({"strategy": "deepspeed_stage_2"}, "trainer.strategy", "a job trains with DDP"),
        ({"val_check_interval": 0}, "trainer.val_check_interval", "1 validates after each batch"),
        ({"callbacks": "LearningRateFinder"}, "trainer.callbacks", "find the rate once with Lightning"),
        (
            {"callbacks": [{"class_path": "lightning.pytorch.callbacks.BatchSizeFinder"}]},
            "trainer.callbacks.0",
            "find the size once with Lightning",
        ),
        ({"_target_": "lightning.Trainer", "max_epochs": 1}, "trainer._target_", "without _target_"),
        ({"gpus": 2}, "trainer.gpus", "argument of Lightning 1; write accelerator: gpu and devices: N"),
        ({"resume_from_checkpoint": "a.ckpt"}, "trainer.resume_from_checkpoint", "ckpt_path: FILE"),
        ({"terminate_on_nan": True}, "trainer.terminate_on_nan", "write detect_anomaly: true"),
        (
            {"accumulate_grad_batches": {"0": 2, "4": 1}},
            "trainer.accumulate_grad_batches",
            r"GradientAccumulationScheduler, init_args: \{scheduling: \{'0': 2, '4': 1\}\}",
        ),
        (
            {"callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": "a/../../up"}}]},
            "trainer.callbacks.0.init_args.dirpath",
            "a path within it, or an absolute one",
        ),
        (
            {"logger": {"class_path": "WandbLogger", "dict_kwargs": {"dir": ".."}}},
            "trainer.logger.dict_kwargs.dir",
            "leads out of the working directory",
        ),
        ({"max_epochs": -1}, "training.max_epochs", "never ends"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(trainer: dict[str, Any], key: str, message: str) -> None:
    found = problems(trainer=trainer)

    assert key in found
    assert re.search(message, found[key])


@pytest.mark.parametrize("name", ["fast_dev_run", "barebones", "overfit_batches", "model_registry"])
def test_lightnings_defaults_are_no_reason_to_refuse(name: str) -> None:
    default = inspect.signature(Trainer).parameters[name].default

    assert read(trainer={name: default})[0].trainer == TrainerOptions()


def test_a_value_that_is_given_twice_and_differs_is_refused() -> None:
    found = problems(trainer={"max_epochs": 3}, training={"max_epochs": 4})

    assert found == {"trainer.max_epochs": "3 differs from training.max_epochs, which is 4; keep one of them"}
    assert read(trainer={"max_epochs": 3}, training={"max_epochs": 3})[0].training.max_epochs == 3


def test_keys_of_a_subclass_of_lightning_cli_are_refused_by_name() -> None:
    found = problems(seed_everything=True, matmul_precision="high")

    assert "adds to its own LightningCLI" in found["matmul_precision"]


def test_a_class_that_the_program_names_has_to_be_named() -> None:
    found = problems(seed_everything=1, model={"lr": 0.1})

    assert "--model package.Class" in found["model.class_path"]


def test_what_a_configuration_does_not_give_has_lightnings_default_whatever_else_is_set() -> None:
    for keys in ({"seed_everything": 1}, {"trainer": {"gradient_clip_val": 1.0}}):
        training = read(**keys, training={"precision": "64-true"})[0].training

        assert (training.max_epochs, training.loader_batches) == (1000, 1)
    assert read(training={"precision": "64-true"})[0].training.max_epochs == 10


def test_null_may_have_a_meaning_of_its_own() -> None:
    spec, _ = read(trainer={"check_val_every_n_epoch": None, "val_check_interval": 7, "logger": None})

    assert spec.trainer.model_dump() == {"check_val_every_n_epoch": None, "val_check_interval": 7}
    assert read_spec(spec.model_dump(mode="json"))[0] == spec
    assert read(trainer={"check_val_every_n_epoch": 1, "devices": 1})[0].trainer == TrainerOptions()


def test_a_spec_may_ask_for_more_gpus_than_the_accelerator_says() -> None:
    assert (
        read(trainer={"accelerator": "gpu"}, resources={"gpus_per_worker": 2})[0].resources.gpus_per_worker
        == 2
    )
    assert "trainer.accelerator" in problems(trainer={"accelerator": "gpu"}, resources={"gpus_per_worker": 0})


def test_a_job_logs_to_mlflow_in_any_case_and_says_so() -> None:
    assert any("trainer.logger: false" in note for note in read(trainer={"logger": False})[1])


def test_hydra_is_recognised() -> None:
    found = problems(model={"_target_": "lab.Net", "lr": 1})

    assert "class_path: lab.Net" in found["model._target_"]


def test_references_to_variables_are_for_the_command_line() -> None:
    found = problems(seed_everything=1, data={"class_path": "lab.Data", "init_args": {"folder": "${DATA}"}})

    assert "write the value" in found["data.init_args.folder"]


def test_a_checkpoint_to_go_on_from_is_one_to_start_from() -> None:
    spec, _ = read_spec({"seed_everything": 5, **BASE, "ckpt_path": "logs/last.ckpt", "weights_only": True})

    assert spec.start_from is not None
    assert (spec.start_from.path, spec.start_from.state) == ("logs/last.ckpt", "all")

    with pytest.raises(SpecError, match="ckpt_path: best is not a file; name one"):
        read_spec({"seed_everything": 5, **BASE, "ckpt_path": "best"})


def test_batch_norm_that_is_not_to_be_synchronized_is_noted() -> None:
    trainer = {"sync_batchnorm": False}

    spec, notes = read(trainer=trainer)

    assert spec.norm.kind == "sync_batch_norm"
    assert any("synchronized nevertheless; norm.kind: batch_norm gives" in note for note in notes)
    assert not any("nevertheless" in note for note in read(trainer=trainer, norm={"kind": "batch_norm"})[1])
    assert "trainer.sync_batchnorm" in problems(trainer=trainer, norm={"kind": "sync_batch_norm"})
    assert "trainer.sync_batchnorm" in problems(trainer={"sync_batchnorm": True}, norm={"kind": "batch_norm"})


def test_batch_renorm_is_synchronized() -> None:
    renorm = {"kind": "batch_renorm"}

    assert read(trainer={"sync_batchnorm": True}, norm=renorm)[0].norm.kind == "batch_renorm"
    assert "trainer.sync_batchnorm" in problems(trainer={"sync_batchnorm": False}, norm=renorm)


def test_a_sampler_for_each_worker_goes_with_loaders_of_their_own() -> None:
    spec, _ = read(trainer={"use_distributed_sampler": False}, training={"sampler": "own"})

    assert (spec.training.sampler, spec.trainer) == ("own", TrainerOptions())


@pytest.mark.parametrize(
    ("key", "arguments", "message"),
    [
        ("optimizer", {"lr": 0.02}, "write {class_path: Adam, init_args: {lr: 0.02}}"),
        ("lr_scheduler", {"step_size": 3}, "write {class_path: StepLR, init_args: {step_size: 3}}"),
    ],
)
def test_arguments_of_a_class_that_the_program_names_are_told_how_to_name_it(
    key: str, arguments: dict[str, Any], message: str
) -> None:
    assert message in problems(**{key: arguments}, seed_everything=1)[f"{key}.class_path"]


def test_an_optimizer_without_a_class_is_that_of_a_spec_and_says_so() -> None:
    optimizer = {"init_args": {"lr": 0.02}}

    spec, notes = read(seed_everything=1, optimizer=optimizer)

    assert spec.optimizer is not None
    assert spec.optimizer.class_path == "torch.optim.SGD"
    assert "optimizer.class_path is not given, so it is torch.optim.SGD" in notes
    assert not read(optimizer=optimizer)[1]


@pytest.mark.parametrize(
    ("seed", "message"),
    [(-1, "-1 is no seed"), (2**32, "is no seed"), ("12", "write 12, without quotes"), (1.5, "is no seed")],
)
def test_a_seed_that_is_none_is_refused_by_its_own_name(seed: object, message: str) -> None:
    found = problems(seed_everything=seed)

    assert list(found) == ["seed_everything"]
    assert message in found["seed_everything"]


def test_a_seed_that_is_not_wanted_leaves_that_of_the_spec() -> None:
    spec, notes = read(seed_everything=False)

    assert spec.training.seed == 0
    assert any("a job has a seed, which is 0" in note for note in notes)
    spec, notes = read(seed_everything=False, training={"seed": 4})
    assert spec.training.seed == 4
    assert read(seed_everything=True, training={"seed": 4})[0].training.seed == 4
    assert not any("a job has a seed" in note for note in notes)


def test_one_device_needs_no_strategy() -> None:
    assert read(trainer={"strategy": "single_device"})[0].trainer == TrainerOptions()


def test_what_an_mlflow_logger_says_without_effect_is_noted() -> None:
    given = {"experiment_name": "lab", "tracking_uri": "http://mlflow", "tags": None, "log_model": False}

    _, notes = read(trainer={"logger": {"class_path": "MLFlowLogger", "init_args": given}})

    assert any("of MLFlowLogger, tracking_uri has no effect" in note for note in notes)
