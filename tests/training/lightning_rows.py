"""What a Lightning project may do that a job does as well: the rows of a table.

test_as_lightning.py holds every row on 1, 2 and 3 workers; docs/generate.py makes a page of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that a project may do. what: in words, for the documentation.

    arguments: of the module. kind: of batches, a key of `lab_modules.COLLATED`. accumulate: micro-batches
    per step. tolerance: relative, of logged values. norm: of the spec; {}: BatchNorm over the global batch.
    """

    group: str
    what: str
    module: str = "Regression"
    data: str = "Data"
    kind: str = "tuple"
    accumulate: int = 1
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-9
    norm: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [
            self.module,
            *map(str, self.arguments.values()),
            *map(str, self.norm.values()),
            *([self.data] if self.data != "Data" else []),
            self.kind,
        ]
        return "-".join(parts + ([f"by {self.accumulate}"] if self.accumulate > 1 else []))


BATCH_RENORM = {
    "kind": "batch_renorm",
    "r_max": 1.1,
    "d_max": 0.2,
    "plain_steps": 1,
    "r_steps": 4,
    "d_steps": 3,
}
"""All of the warm-up is in the first 4 of 8 steps."""

ROWS = [
    Row(group="Batches", what="a tuple of tensors"),
    Row(group="Batches", what="a list of tensors and of names", kind="list with names"),
    Row(group="Batches", what="a dict", kind="dict"),
    Row(group="Batches", what="a named tuple", kind="named tuple"),
    Row(group="Batches", what="a dataclass", kind="dataclass"),
    Row(group="Batches", what="an object of a class of your own", kind="own class"),
    Row(group="Batches", what="a UserDict, as Hugging Face's BatchEncoding", kind="UserDict"),
    Row(group="Batches", what="an object with to(), as PyTorch Geometric's Batch", kind="graphs"),
    Row(group="Batches", what="sequences with time as first dimension", kind="time first"),
    Row(group="Batches", what="lists of tensors of different sizes", kind="tensors of different sizes"),
    Row(group="Batches", what="packed sequences", kind="packed"),
    Row(group="Batches", what="no tensor at all", kind="no tensor"),
    *(
        Row(
            group="Accumulation",
            what=f"two micro-batches per step; batches: {kind}",
            kind=kind,
            data="Even",
            accumulate=2,
        )
        for kind in ("tuple", "own class", "time first")
    ),
    *(
        Row(
            group="self.log",
            what=f"on_step and on_epoch, mean, max and sum; batches: {kind}",
            module="Logs",
            kind=kind,
        )
        for kind in ("tuple", "own class", "time first")
    ),
    *(
        Row(
            group="self.log",
            what=f"torchmetrics collections and sums; batches: {kind}",
            module="Metrics",
            kind=kind,
            tolerance=1e-6,  # torchmetrics counts in float32
        )
        for kind in ("tuple", "dict", "own class", "tensors of different sizes")
    ),
    Row(
        group="self.log",
        what="torchmetrics on_step: values of the global batch, by ranks with samples alone",
        module="StepMetrics",
        tolerance=1e-6,  # torchmetrics counts in float32
    ),
    *(
        Row(
            group="self.log",
            what=f"torchmetrics that take no batch without samples; batches: {kind}",
            module="CountsWhatThereIs",
            kind=kind,
            tolerance=1e-6,  # torchmetrics counts in float32
        )
        for kind in ("tuple", "own class")
    ),
    Row(group="Loss", what="of shape (1,)", module="LossOfShapeOne"),
    Row(group="Loss", what="in a dict with other values", module="LossInDict"),
    Row(group="Loss", what="None, which skips the batch", module="SkipsBatches"),
    Row(
        group="Loss",
        what="None in one of two micro-batches",
        module="SkipsBatches",
        data="Even",
        accumulate=2,
    ),
    *(
        Row(group="Loss", what=what, module="Segments", kind=kind, data=data, arguments={"which": which})
        for which, kind, data, what in (
            ("class weights", "tuple", "Tested", "cross_entropy with class weights"),
            ("ignored", "tuple", "Tested", "cross_entropy with ignore_index, and shares without a target"),
            ("both", "tuple", "Data", "class weights, ignore_index and label smoothing"),
            ("both", "own class", "Data", "class weights, ignore_index and label smoothing"),
            ("nll", "tuple", "Data", "nll_loss with class weights and ignore_index"),
            ("with another", "tuple", "Data", "the sum of a weighted cross_entropy and a mean over samples"),
            ("masked", "tuple", "Tested", "a masked mean, by sync_bn.global_mean"),
            ("masked", "own class", "Data", "a masked mean, by sync_bn.global_mean"),
            ("Dice", "tuple", "Data", "the Dice loss of a batch, by sync_bn.global_mean"),
        )
    ),
    Row(
        group="Loss",
        what="cross_entropy with class weights, in two micro-batches per step",
        module="Segments",
        data="EvenTrainsOnly",
        accumulate=2,
        arguments={"which": "class weights"},
    ),
    Row(group="Optimization", what="parameters that no step uses", module="UnusedHead"),
    Row(group="Optimization", what="parameters that some steps use", module="HeadOfSomeBatches"),
    Row(
        group="Optimization",
        what="parameters that some samples use, so perhaps one rank alone",
        module="HeadOfSomeSamples",
    ),
    Row(
        group="Optimization",
        what="parameters that some micro-batches of a step use",
        module="HeadOfSomeBatches",
        data="Even",
        accumulate=2,
    ),
    Row(group="Optimization", what="layers that are unfrozen during the training", module="Unfreezes"),
    Row(group="Optimization", what="LBFGS, which calls its closure several times", module="QuasiNewton"),
    Row(group="Optimization", what="clipping in configure_gradient_clipping", module="ClipsGradients"),
    Row(group="Optimization", what="a scheduler that watches a metric", module="Plateau"),
    Row(group="Manual optimization", what="a GAN with toggle_optimizer", module="Adversarial"),
    Row(
        group="Manual optimization",
        what="a GAN on batches of a class of your own",
        module="Adversarial",
        kind="own class",
    ),
    Row(group="Manual optimization", what="a GAN without toggle_optimizer", module="Untoggled"),
    Row(group="Manual optimization", what="accumulation by hand", module="AccumulatesByHand"),
    Row(group="Manual optimization", what="several backward passes of one loss", module="SeveralBackwards"),
    Row(
        group="Manual optimization",
        what="optimizers that step at different rates",
        module="StepsAtDifferentRates",
    ),
    Row(group="Data", what="transfer hooks, and a setup that needs the trainer", data="Hooked"),
    Row(group="Data", what="several loaders to validate on", data="ValidatesOnTwo", module="OnSeveral"),
    Row(group="Data", what="a dict of loaders to validate on", data="ValidatesOnDict", module="OnSeveral"),
    Row(group="Data", what="a test after the fit", data="Tested", module="WithTest"),
    Row(group="Data", what="several loaders to test on", data="TestedOnTwo", module="WithTest"),
    Row(group="Data", what="a list of loaders to train on", data="TrainsOnList", module="OfBoth"),
    Row(group="Data", what="a dict of loaders to train on", data="TrainsOnDict", module="OfBoth"),
    Row(group="Data", what="a CombinedLoader with mode min_size", data="TrainsOnMin", module="OfBoth"),
    Row(group="Data", what="a CombinedLoader with mode max_size", data="TrainsOnMax", module="OfBoth"),
    Row(group="Data", what="num_workers, persistent_workers, worker_init_fn", data="WithProcesses"),
    Row(group="Data", what="drop_last", data="DropsLast"),
    Row(group="Data", what="a collate_fn that drops samples", data="DropsSamples"),
    Row(group="Data", what="no loader to validate on", data="TrainsOnly"),
    Row(
        group="Hooks",
        what="every hook of module, data module and callback, in order",
        module="Noting",
        data="NotingData",
    ),
    *(
        Row(
            group="Callbacks of the module's own",
            what=what,
            module="WithCallback",
            arguments={"which": which},
        )
        for which, what in {
            "best": "ModelCheckpoint with monitor and save_top_k",
            "steps": "ModelCheckpoint with every_n_train_steps and a file name of metrics",
            "last": "ModelCheckpoint with save_last and save_weights_only",
            "stop": "EarlyStopping on a validation metric",
            "stop on train": "EarlyStopping on a training metric",
            "rate": "LearningRateMonitor",
            "ema": "EMAWeightAveraging",
            "swa": "StochasticWeightAveraging, which updates the statistics of BatchNorm at the end",
            "pruning": "ModelPruning",
            "own": "a callback that saves a checkpoint with trainer.save_checkpoint",
        }.items()
    ),
    Row(
        group="self.log",
        what="in every hook, in callbacks, some batches, and by rank 0 alone",
        module="LogsAnywhere",
    ),
    *(
        Row(
            group="Hooks",
            what=f"trainer.should_stop, set in {where}, if only on one worker",
            module="EndsEarly",
            arguments={"where": where},
        )
        for where in ("training_step", "on_train_batch_end", "on_validation_epoch_end", "on_train_epoch_end")
    ),
    Row(group="Hooks", what="a model that freezes its BatchNorm in train()", module="Freezes"),
    Row(group="Hooks", what="a model that is handed over in evaluation mode", module="HandedOver"),
    Row(group="Hooks", what="layers made in configure_model", module="MadeLate"),
    *(
        Row(
            group="Normalisation",
            what=f"norm.kind: {norm['kind']}"
            + (", with weight_standardization" if "weight_standardization" in norm else "")
            + (", with two micro-batches per step" if accumulate > 1 else ""),
            module="Convolves",
            data="Data" if accumulate == 1 else "Even",
            accumulate=accumulate,
            norm=norm,
        )
        for norm, accumulate in (
            (BATCH_RENORM, 1),
            (BATCH_RENORM, 2),
            ({"kind": "group_norm", "groups": 2}, 1),
            ({"kind": "group_norm", "groups": 2, "weight_standardization": True}, 1),
            ({"kind": "layer_norm"}, 1),
            ({"kind": "instance_norm"}, 1),
            ({"kind": "filter_response_norm"}, 1),
            ({"kind": "evonorm_s0", "groups": 2}, 1),
            ({"kind": "none"}, 1),
        )
    ),
]
