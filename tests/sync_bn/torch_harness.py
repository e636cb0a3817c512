"""Torch's own distributed tests of SyncBatchNorm, from the installed torch, run with ours on the CPU.

`cases()` finds them in torch's source, `run_case` runs one of them in a rank. Their code and their assertions
stay as they are; what differs is around them:

- `nn.SyncBatchNorm` is ours, and torch's own cannot be constructed;
- decorators are taken off: all they do is skip a case, without GPUs, NCCL or torchvision, or for good;
- whatever is put on a device is on the CPU, and DistributedDataParallel is given no `device_ids`;
- barriers are the group's, because torch's are files that its own launcher makes;
- a case that asks the profiler for the all-gather of torch's layer gets any collective of ours.
"""

import ast
import importlib
import importlib.util
import inspect
import os
import re
import sys
import unittest
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import Mock, patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from sync_bn import SyncBatchNorm

TORCHS_TESTS = "torch.testing._internal.distributed.distributed_test"
ABOUT_SYNC_BATCH_NORM = re.compile("SyncBatchNorm|sync_?bn", re.IGNORECASE)

Forward = Callable[[SyncBatchNorm, Tensor], Tensor]


class Case(NamedTuple):
    name: str
    decorators: list[str]


class Usage(NamedTuple):
    """How often a case called our layer and our converter."""

    forwards: int
    conversions: int


def modules_about_sync_batch_norm() -> list[str]:
    """Every module below torch.testing that speaks of it."""
    (package,) = importlib.import_module("torch.testing").__path__
    root = Path(package).parents[1]
    return [
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in sorted(Path(package).rglob("*.py"))
        if ABOUT_SYNC_BATCH_NORM.search(path.read_text(encoding="utf-8"))
    ]


@cache
def cases() -> list[Case]:
    """The tests that speak of SyncBatchNorm or call a helper method that does.

    They are read and not imported: the import changes settings of torch and hypothesis for the whole process.
    """
    spec = importlib.util.find_spec(TORCHS_TESTS)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    lines = source.splitlines()
    methods = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    bodies = {method.name: "\n".join(lines[method.lineno - 1 : method.end_lineno]) for method in methods}
    about = {name for name, body in bodies.items() if ABOUT_SYNC_BATCH_NORM.search(body)}
    return [
        Case(method.name, [ast.unparse(decorator) for decorator in method.decorator_list])
        for method in methods
        if method.name.startswith("test_")
        and (method.name in about or any(f"self.{name}(" in bodies[method.name] for name in about))
    ]


def run_case(rank: int, name: str, forward: Forward = SyncBatchNorm.forward) -> Usage:
    """Runs in a rank: one of torch's cases, with `forward` as our layer's."""
    with _ours_for_theirs(forward) as usage:
        tests = _import_torchs_tests()
        with OnCpu():
            _test_case(tests, rank, name).debug()
        return usage()


class OnCpu(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return torch.device("cpu")
        if func is Tensor.cuda:
            return args[0]
        if kwargs.get("device") is not None:
            kwargs["device"] = "cpu"
        if func is Tensor.to:
            args = (args[0], *("cpu" if _is_device(arg) else arg for arg in args[1:]))
        return func(*args, **kwargs)


def _is_device(argument: object) -> bool:
    return isinstance(argument, str | torch.device) or type(argument) is int


@contextmanager
def _ours_for_theirs(forward: Forward) -> Iterator[Callable[[], Usage]]:
    forwards = 0

    def watched_forward(self: SyncBatchNorm, input: Tensor) -> Tensor:
        nonlocal forwards
        forwards += 1
        with torch.profiler.record_function("SyncBatchNorm"):
            return forward(self, input)

    ddp_init = DistributedDataParallel.__init__

    def ddp_init_on_cpu(self: DistributedDataParallel, module: nn.Module, **options: Any) -> None:
        ddp_init(self, module, **{**options, "device_ids": None, "output_device": None})

    convert = Mock(wraps=SyncBatchNorm.convert_sync_batchnorm)
    refuse = Mock(side_effect=AssertionError("torch's own SyncBatchNorm was constructed"))
    replacements: list[tuple[Any, str, object]] = [
        (SyncBatchNorm, "forward", watched_forward),
        (SyncBatchNorm, "convert_sync_batchnorm", convert),
        (nn.SyncBatchNorm, "__init__", refuse),
        # DistributedDataParallel knows torch's layer by this name where it writes its log, and by that in
        # torch.nn.modules, which stays, where it refuses the layer on the CPU.
        (nn, "SyncBatchNorm", SyncBatchNorm),
        (DistributedDataParallel, "__init__", ddp_init_on_cpu),
        *(
            (torch.cuda, name, Mock(return_value=0))
            for name in ("set_device", "current_device", "synchronize")
        ),
    ]
    with ExitStack() as patches:
        for target, name, replacement in replacements:
            patches.enter_context(patch.object(target, name, replacement))
        yield lambda: Usage(forwards, convert.call_count)


def _import_torchs_tests() -> ModuleType:
    """A new import for each case, because some versions of torch keep models in the module."""
    # The first two decide what is skipped, the third that cases save and load their models half-way, too.
    environment = {
        "BACKEND": "gloo",
        "WORLD_SIZE": str(dist.get_world_size()),
        "INIT_METHOD": "file://",
        "PYTORCH_PRINT_REPRO_ON_FAILURE": "0",
    }
    try:
        importlib.import_module("expecttest")
    except ModuleNotFoundError:
        sys.modules["expecttest"] = _stand_in("expecttest", TestCase=unittest.TestCase)
    sys.modules.pop(TORCHS_TESTS, None)
    # Torch's utilities take the command line for their own.
    with patch.dict(os.environ, environment), patch.object(sys, "argv", sys.argv[:1]):
        tests = importlib.import_module(TORCHS_TESTS)
    vars(tests)["get_profiling_event"] = _collectives_of_the_layer
    if not hasattr(tests, "torchvision"):
        vars(tests)["torchvision"] = _stand_in("torchvision", models=SimpleNamespace(resnet50=_nested_model))
    return tests


def _stand_in(name: str, **contents: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(contents)
    return module


def _nested_model() -> nn.Module:
    """What the case on nested layers looks at in torchvision's ResNet-50."""
    block, model = nn.Module(), nn.Module()
    block.bn1 = nn.BatchNorm2d(2)
    model.layer1 = nn.Sequential(block)
    return model


def _collectives_of_the_layer(_name: str, profiler: Any) -> list[Any]:
    return [
        event
        for event in profiler.function_events
        if event.name.startswith("c10d::")
        and any(ancestor.name == "SyncBatchNorm" for ancestor in _ancestors(event))
    ]


def _ancestors(event: Any) -> Iterator[Any]:
    while (event := event.cpu_parent) is not None:
        yield event


def _test_case(tests: ModuleType, rank: int, name: str) -> unittest.TestCase:
    common = importlib.import_module("torch.testing._internal.common_utils")
    base = tests.DistributedTest._DistTestBase
    undecorated = inspect.unwrap(getattr(base, name))

    # Some skips are an attribute of the function itself, which this one does not have.
    def run(self: unittest.TestCase) -> None:
        undecorated(self)

    def barrier(_self: object, **_timeout: object) -> None:
        dist.barrier()

    members = {name: run, "rank": rank, "_barrier": barrier}
    case: unittest.TestCase = type("OnOurLayer", (base, common.TestCase), members)(name)
    return case
