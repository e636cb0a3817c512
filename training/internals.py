"""Private parts of Lightning, torch, NumPy and MLflow that the training needs, all used here.

An upgrade may change them without notice. tests/training/test_internals.py says which one it broke. Those of
torchmetrics are in `metric_internals`; those that tell another rank are in `group_internals`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from numpy._core.multiarray import _reconstruct
from torch import Tensor, _guards, nn
from torch.autograd.graph import Node
from torch.distributed import distributed_c10d
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree
from torchmetrics import Metric

from sync_bn import _sums
from sync_bn._handshake import handshakes_entered

tree_map, tree_leaves = _pytree.tree_map, _pytree.tree_leaves
"""Over tensors in nested lists, tuples and dicts; `torch.utils` has no public ones."""

SKIPPED = object()
"""What stands for the None of a `training_step`: see `allow_skipped_steps`."""

PICKLED_ARRAY: tuple[Any, ...] = (_reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32)))
"""What `torch.load(weights_only=True)` must allow for a NumPy array of uint32."""


MEAN, SUM = 1, 2
"""The reductions of torch's losses."""

_DEFAULT_IGNORE_INDEXES = [
    inspect.signature(function).parameters["ignore_index"].default
    for function in (F.cross_entropy, F.nll_loss, nn.CrossEntropyLoss, nn.NLLLoss)
]


def logged_in_stage(trainer: Trainer) -> Any:
    """Returns what the running stage has logged: Lightning's `_ResultCollection`; None outside a loop."""
    return trainer._results


def logged_in_epoch(trainer: Trainer) -> Any:
    """Returns what the running training epoch has logged: Lightning's `_ResultCollection`."""
    return trainer.fit_loop.epoch_loop._results


def set_epoch_length(trainer: Trainer, batches: int) -> None:
    """Makes the running or the next training epoch have `batches` batches, and validation follow its last."""
    loop: Any = trainer.fit_loop
    if isinstance(trainer.val_check_interval, float) and trainer.val_check_batch is not None:
        trainer.val_check_batch = max(1, int(batches * trainer.val_check_interval))
    loop.max_batches = batches
    loop._combined_loader.limits = [batches]
    loop._data_fetcher.length = batches


def before_epoch_ends(trainer: Trainer, call: Callable[[], None]) -> None:
    """Calls `call` after the last batch of an epoch and its validation, before anything else of its end."""
    loop: Any = trainer.fit_loop
    loop.on_advance_end = _after(call, loop.on_advance_end)


def stopped_within_epoch(trainer: Trainer) -> bool:
    """Returns, at the end of an epoch or of the training, whether the epoch has batches left."""
    return not trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def is_between_micro_batches(trainer: Trainer) -> bool:
    """Returns whether gradients are accumulated that no optimizer step has used yet."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def keep_logged_steps(trainer: Trainer) -> None:
    """Makes a run that goes on count the steps of its loggers on from the checkpoint's.

    Lightning adds one: it takes the checkpoint for one saved before the last step was counted.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    reset = loop.reset

    def reset_all_but_the_count() -> None:
        count = loop._batches_that_stepped
        reset()
        loop._batches_that_stepped = count

    loop.reset = reset_all_but_the_count


def skip_sigterm_broadcast(trainer: Trainer) -> None:
    """Leaves out the broadcast of a received SIGTERM that Lightning makes before each training batch."""
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = _no_broadcast


def _no_broadcast() -> None: ...


def loaders_to_train_on(trainer: Trainer) -> tuple[list[Any], str]:
    """Returns the loaders that a step's batch comes from, and the mode in which they are combined."""
    combined: Any = trainer.fit_loop._combined_loader
    return combined.flattened, combined._mode


def lengths_to_train_on(trainer: Trainer) -> list[float]:
    """Returns how many batches of each loader Lightning takes in an epoch, as it found them at first."""
    combined: Any = trainer.fit_loop._combined_loader
    return list(combined.limits)


def loaders_to_evaluate_on(trainer: Trainer) -> tuple[list[Any], str]:
    """Returns the loaders of the running validation or test, and the mode in which they are combined."""
    loop: Any = trainer._evaluation_loop
    return loop._combined_loader.flattened, loop._combined_loader._mode


def before_logged_is_read(trainer: Trainer, batch: Callable[[], None], epoch: Callable[[], None]) -> None:
    """Calls `batch` before Lightning reads what a batch has logged, and `epoch` before it reads the rest."""
    connector: Any = trainer._logger_connector
    for name, before in (
        ("on_batch_end", batch),
        ("epoch_end_reached", epoch),
        ("on_epoch_end", epoch),
        ("update_eval_epoch_metrics", epoch),
        ("update_train_epoch_metrics", epoch),
    ):
        setattr(connector, name, _after(before, getattr(connector, name)))


def _after(before: Callable[[], None], method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        before()
        return method(*args, **kwargs)

    return call


def logged_as(module: LightningModule, results: Any, name: str, *, add_dataloader_idx: bool) -> str:
    """Returns the key in `results` of what the running hook of a module logs as `name`."""
    suffix = f".{results.dataloader_idx}" if add_dataloader_idx and results.dataloader_idx is not None else ""
    return f"{module._current_fx_name}.{name}{suffix}"


def holds_metric(module: LightningModule, name: str, metric: Metric) -> bool:
    """Returns whether the running hook has logged `metric` as `name`, and its value has not been read since.

    Lightning then holds the metric itself, and to log it again would change nothing.
    """
    results = logged_in_stage(module.trainer)
    if results is None:
        return False
    result = results.get(logged_as(module, results, name, add_dataloader_idx=True))
    return result is not None and result.value is metric and not (result.has_reset or is_computed(result))


def arguments_of(result: Any) -> dict[str, Any]:
    """Returns the arguments for `log_again` with which a result was logged, without value and batch size."""
    meta = result.meta
    suffix = f".{meta.dataloader_idx}" if meta.add_dataloader_idx and meta.dataloader_idx is not None else ""
    names = ("name", "prog_bar", "logger", "on_step", "on_epoch", "add_dataloader_idx", "metric_attribute")
    return {
        "fx": meta.fx.removesuffix(suffix),
        "reduce_fx": meta.reduce_fx,
        "rank_zero_only": meta.sync.rank_zero_only,
        **{name: getattr(meta, name) for name in names},
    }


def log_again(trainer: Trainer, value: Any, batch_size: Any, arguments: dict[str, Any]) -> None:
    """Logs a value as the hook of the module would that `arguments_of` tells about."""
    results: Any = trainer._results
    results.log(value=value, batch_size=batch_size, sync_dist_fn=trainer.strategy.reduce, **arguments)


def step_value(result: Any) -> Any:
    """Returns what was logged last, on this rank."""
    return result._forward_cache


def set_step_value(result: Any, value: Tensor) -> None:
    """Replaces what was logged last."""
    result._forward_cache, result.has_reset = value, False
    if result.is_tensor and not result.meta.on_epoch:
        result.value = value


def is_computed(result: Any) -> bool:
    """Returns whether Lightning has read a result at the end of the epoch."""
    return result._computed is not None


class _MaySkip(ClosureResult):
    @classmethod
    def from_training_step_output(cls, training_step_output: Any, normalize: int = 1) -> ClosureResult:
        if training_step_output is SKIPPED:
            return cls(None)
        return super().from_training_step_output(training_step_output, normalize)


def allow_skipped_steps(trainer: Trainer) -> None:
    """Lets a strategy's `training_step` return SKIPPED: Lightning refuses None if there are several ranks."""
    trainer.fit_loop.epoch_loop.automatic_optimization.output_result_cls = _MaySkip


def backward_reaches(node: Node) -> bool:
    """Returns whether the backward pass that runs now will execute a node. Call it in a tensor's hook."""
    return torch._C._will_engine_execute_node(node)


def is_default_ignore_index(ignore_index: int) -> bool:
    """Returns whether the caller of a loss has left `ignore_index` to torch, and has not named -100 itself.

    By identity: a number outside CPython's cache is another object in each place that writes it. Where that
    fails, as in a loss that was pickled, the default counts as named.
    """
    return any(ignore_index is default for default in _DEFAULT_IGNORE_INDEXES)


def is_traced(tensor: Tensor) -> bool:
    """Returns whether torch.compile is tracing the call that has this argument, which has no values then."""
    return _guards.detect_fake_mode(tensor) is not None


@contextmanager
def losses_replaced(replacements: Mapping[str, Callable[..., Tensor]]) -> Iterator[None]:
    """Calls replacement(original, *args) where `torch.nn.functional` calls a compiled loss.

    replacements: by the names `cross_entropy_loss` and `nll_loss_nd`. Functions and modules that were
    imported before call it, too.
    """
    compiled: Any = torch._C._nn
    originals = {name: getattr(compiled, name) for name in replacements}
    for name, replacement in replacements.items():
        setattr(compiled, name, functools.partial(replacement, originals[name]))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(compiled, name, original)


def prepare_forward_sync(ddp: DistributedDataParallel) -> None:
    """Lets the next forward pass broadcast buffers, as after a forward pass that prepared for a backward."""
    ddp.require_forward_param_sync = True


def prepare_for_backward(ddp: DistributedDataParallel) -> None:
    """Makes the running backward pass average the gradients of all parameters; it must reach all of them."""
    ddp.reducer._rebuild_buckets()
    ddp.reducer.prepare_for_backward([])


def changes_in_place(tensor: Tensor) -> int:
    """Returns how often a tensor was changed in place."""
    return tensor._version


def has_gradient_hooks(parameter: Tensor) -> bool:
    """Returns whether somebody has registered a hook for a parameter's gradient."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def collectives_entered() -> int | None:
    """Returns how many collectives this rank has entered in the default group, those of sync_bn included.

    None if there is no group, or if nobody counts.
    """
    group: Any = dist.group.WORLD
    if group is None:
        return None
    try:
        collectives = int(group._get_sequence_number_for_group())
        return collectives + handshakes_entered(group) + _sums.uncounted(group)
    except RuntimeError:  # not every backend counts
        return None


def group_store() -> Any:
    """Returns the key-value store of the default process group."""
    group: Any = dist.group.WORLD
    return distributed_c10d._get_process_group_store(group)


def counts_versions(logger: Logger) -> bool:
    """Returns whether a logger of Lightning was given no version, and takes the next free number."""
    return getattr(logger, "_version", 0) is None and isinstance(logger.version, int)


def set_version(logger: Any, version: int) -> None:
    """Replaces the version that a logger has, or would count."""
    logger._version = version


class CsvWriter:
    """The file of a CSVLogger on rank 0, opened without deleting what is there, as Lightning would.

    pending: rows that are logged and not in the file yet. rows: how many are in the file.
    """

    def __init__(self, logger: CSVLogger) -> None:
        deletes: Any = _ExperimentWriter
        original, deletes._check_log_dir_exists = deletes._check_log_dir_exists, lambda _: None
        try:
            self._writer: Any = logger.experiment
        finally:
            deletes._check_log_dir_exists = original
        self.path: str = self._writer.metrics_file_path
        self.rows, self._save = 0, self._writer.save
        self._writer.save = self._save_and_count

    def _save_and_count(self) -> None:
        added = len(self._writer.metrics)
        self._save()
        self.rows += added

    @property
    def pending(self) -> list[dict[str, Any]]:
        return list(self._writer.metrics)

    def go_on(self, keys: list[str], rows: int, pending: list[dict[str, Any]]) -> None:
        """Adds to a file that has these columns and rows. pending: rows that are to be added first."""
        self._writer.metrics_keys, self.rows, self._writer.metrics = keys, rows, list(pending)


def replace_active_runs(make: Callable[[], list[Any]]) -> None:
    """Replaces MLflow's stack of active runs in all threads by what `make` returns for each."""
    from mlflow.tracking import fluent  # takes seconds
    from mlflow.utils.thread_utils import ThreadLocalVariable

    fluent._active_run_stack = ThreadLocalVariable(default_factory=make)


def add_active_run(run: Any) -> None:
    """Makes a run the active one of MLflow in this thread, within the one that was."""
    from mlflow.tracking import fluent

    fluent._active_run_stack.get().append(run)


def sequence_number() -> int:
    """Returns how many operations this thread has recorded; backward passes run the latest first."""
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


def count_sequence_on(number: int) -> None:
    """Makes this thread count its recorded operations from `number` on, if it has not come so far."""
    if sequence_number() >= number or torch.is_inference_mode_enabled():
        return
    with torch.enable_grad():
        while sequence_number() < number:
            _RECORDED.view_as(_RECORDED)


_RECORDED = torch.zeros((), requires_grad=True)


def is_compiled(part: nn.Module) -> bool:
    """Returns whether a module is what torch.compile made of one, or compiles its calls."""
    # Not by hasattr, which takes 4 µs to say no.
    return part._compiled_call_impl is not None or "_orig_mod" in part._modules


def set_flat_weights(part: nn.RNNBase) -> None:
    """Makes a recurrent layer compute with the parameters that it has now."""
    part._flat_weights = [getattr(part, name, None) for name in part._flat_weights_names]


def is_wrapped(tensor: Tensor) -> bool:
    """Returns whether a tensor is one of a transformation of torch.func, and has no bits of its own."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)
