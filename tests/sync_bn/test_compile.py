"""torch.compile: one graph, the same numbers, and what follows a layer is fused with it."""

import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sync_bn import SyncBatchNorm
from testing.ranks import Ranks

can_compile = (
    bool(shutil.which("g++") or shutil.which("clang++"))
    and (Path(sysconfig.get_path("include")) / "Python.h").exists()
)
needs_compiler = pytest.mark.skipif(
    not can_compile, reason="inductor needs a C++ compiler and Python's headers"
)

COMPILERS = ("torch._dynamo", "torch._inductor.compile_fx", "torch._inductor.codegen.cpp")
# The CPU's instructions are those that /proc/cpuinfo names; inductor compiles no program to try them.
INDUCTOR: dict[str, Any] = {"compile_threads": 1, "cpp.vec_isa_ok": True}


@pytest.fixture(scope="module")
def ranks(full_run: None) -> Iterator[Ranks]:  # noqa: ARG001
    """With more time than others, for compilers, which are imported once for both."""
    with Ranks(2, timeout_seconds=400, preload=COMPILERS) as ranks:
        yield ranks


Batch = dict[str, list[Tensor]]
"""Of each name the parts of all ranks."""


class Network(nn.Module):
    """Two layers with all options between them, so that one compilation does for all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fused = SyncBatchNorm(5, activation="silu")
        self.weighted = SyncBatchNorm(5, momentum=None)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, 0.5, 2)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        y: Tensor = self.weighted(self.fused(x, x.sin()).tanh(), sample_weight=weights)
        return y


def results_of_steps(
    model: nn.Module, call: Any, batches: list[dict[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """Of a step for each batch, in training or evaluation."""
    results = []
    for batch in batches:
        model.train(bool(batch["training"]))
        model.zero_grad()
        x = batch["x"].clone().requires_grad_()
        y = call(x, batch["weights"])
        torch.autograd.backward(y, batch["dy"])
        assert x.grad is not None
        gradients = {
            f"gradient of {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
        }
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        results.append({"y": y.detach(), "gradient of x": x.grad} | gradients | buffers)
    return results


def eager_and_compiled(
    rank: int, backend: str, dtype: torch.dtype, batches: list[Batch]
) -> list[list[dict[str, Tensor]]]:
    torch._dynamo.reset()
    own = [{name: parts[rank] for name, parts in batch.items()} for batch in batches]
    eager, to_compile = (Network().to(dtype) for _ in range(2))
    with torch._inductor.config.patch(INDUCTOR):
        compiled = torch.compile(to_compile, backend=backend, fullgraph=True)
        return [results_of_steps(eager, eager, own), results_of_steps(to_compile, compiled, own)]


def batch(cut: list[int], dtype: torch.dtype, *, training: bool = True) -> Batch:
    parts = {name: [torch.randn(n, 5, 6, dtype=dtype) for n in cut] for name in ("x", "dy")}
    weights = [torch.randint(0, 2, (n, 6)) for n in cut]
    return parts | {"weights": weights, "training": [torch.tensor(training)] * len(cut)}


def assert_as_in_eager_mode(
    ranks: Ranks, backend: str, dtype: torch.dtype, batches: list[Batch], tolerance: float
) -> None:
    for eager, compiled in ranks.run(eager_and_compiled, backend, dtype, batches):
        for expected, actual in zip(eager, compiled, strict=True):
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@needs_compiler
def test_compiled_as_one_graph_it_does_what_it_does_in_eager_mode(ranks: Ranks) -> None:
    """The ranks' parts have one size, so that one rank takes the loops that the other has compiled."""
    torch.manual_seed(0)
    assert_as_in_eager_mode(ranks, "inductor", torch.float32, [batch([4, 4], torch.float32)], 2e-5)


def test_graph_is_right_for_other_sizes_and_in_evaluation_too(ranks: Ranks) -> None:
    """The graph is run as it is, because inductor takes long."""
    torch.manual_seed(0)
    batches = [batch([4, 3], torch.float64), batch([2, 5], torch.float64), batch([6, 0], torch.float64)]
    evaluation = batch([2, 5], torch.float64, training=False)

    assert_as_in_eager_mode(ranks, "aot_eager", torch.float64, [*batches, evaluation], 1e-11)


def code_of_forward(rank: int) -> str:
    torch._dynamo.reset()
    layer = SyncBatchNorm(5)

    def function(x: Tensor) -> Tensor:
        y: Tensor = layer(x)
        return y.relu() * 2

    with torch._inductor.config.patch(INDUCTOR | {"force_disable_caches": True}):
        compiled = torch.compile(function, fullgraph=True)
        _, (code, *_) = torch._inductor.utils.run_and_get_code(compiled, torch.randn(4 + rank, 5, 6))
    return str(code)


@needs_compiler
def test_normalising_and_what_follows_is_one_loop_that_writes_one_tensor(ranks: Ranks) -> None:
    for rank, code in enumerate(ranks.run(code_of_forward)):
        _, after_the_collective = code.split("wait_tensor.default(", 1)
        call, _ = after_the_collective.split("return (", 1)
        assert call.count("cpp_fused_") == 1
        assert call.count("empty_strided_cpu(") == 1
        assert code.count(f"empty_strided_cpu(({4 + rank}, 5, 6)") == 1


def gradients_of_one_that_needs(rank: int, needed: list[list[str]]) -> list[dict[str, Tensor]]:
    torch._dynamo.reset()
    results = []
    for compiling in (False, True):
        torch.manual_seed(rank)
        layer = SyncBatchNorm(5, dtype=torch.float64)
        x = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad="x" in needed[rank])
        layer.weight.requires_grad_("weight" in needed[rank])
        layer.bias.requires_grad_("bias" in needed[rank])
        call = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiling else layer
        torch.autograd.backward(call(x).square().sum())
        tensors = {"x": x, **dict(layer.named_parameters())}
        results.append({name: t.grad for name, t in tensors.items() if t.grad is not None})
    return results


def test_compiled_ranks_need_not_agree_about_what_needs_gradients(ranks: Ranks) -> None:
    needed = [["weight", "bias", "x"], ["weight", "bias"]]

    for (eager, compiled), names in zip(ranks.run(gradients_of_one_that_needs, needed), needed, strict=True):
        assert sorted(compiled) == sorted(names)
        torch.testing.assert_close(compiled, eager, rtol=1e-11, atol=1e-11)


def train_checkpointed(rank: int) -> list[dict[str, Tensor]]:
    torch._dynamo.reset()
    results = []
    for compiling in (False, True):
        torch.manual_seed(0)
        block = nn.Sequential(nn.Linear(5, 5), SyncBatchNorm(5), nn.Tanh()).double()
        model = DistributedDataParallel(Checkpointed(block))
        torch.manual_seed(rank)
        call = torch.compile(model, backend="aot_eager") if compiling else model
        torch.autograd.backward(call(torch.randn(4 + rank, 5).double()).square().sum())
        gradients = {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
        results.append(gradients | dict(block.named_buffers()))
    return results


class Checkpointed(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.block, x, use_reentrant=False)
        return y


def test_compiled_with_ddp_and_checkpoints_statistics_are_updated_once(ranks: Ranks) -> None:
    for eager, compiled in ranks.run(train_checkpointed):
        assert compiled["1.num_batches_tracked"] == 1
        torch.testing.assert_close(compiled, eager, rtol=1e-11, atol=1e-11)
