"""Triton's kernels: they run where they should, write all of their results, and can be compiled for GPUs.

That they give what torch gives is in the other files, wherever `passes` is "triton": on a GPU, or on the CPU
by Triton's interpreter.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sync_bn import _triton, convert_sync_batchnorm
from testing.ranks import Ranks
from tests.sync_bn import layouts
from tests.sync_bn.one_process import (
    OwnPasses,
    Step,
    assert_as_one_process,
    batch_norm,
    device,
    needs_triton,
    passes_of,
    reference_steps,
    step,
    weighted_batch_norm,
)

ROOT = Path(__file__).parents[2]
TILE_FOR_GPUS = _triton._TILE  # the interpreter takes larger ones
HALF_AND_SINGLE = [torch.float32, torch.float16, torch.bfloat16]


@needs_triton
@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 7), (3, 5, 4, 2), (3, 5, 2, 2, 2)])
def test_kernels_run_for_every_dense_layout_and_dtype_of_at_most_32_bits(shape: tuple[int, ...]) -> None:
    with passes_of("triton"):
        x = torch.randn(shape, device=device())
        for layout in (layouts.contiguous, layouts.channels_last):
            for dtype in HALF_AND_SINGLE:
                assert _triton.passes(layout(x.to(dtype))) is not None
        others = [x.double(), x[:0], layouts.sliced(x), x.to("meta"), torch._neg_view(x)]
        assert [_triton.passes(left_to_torch) for left_to_torch in others] == [None] * 5
        assert _triton.passes(x, weight=torch.ones(4, device=device())) is None
        assert _triton.passes(x, residual=x[:1]) is None


def test_kernels_leave_the_cpu_to_its_loops() -> None:
    assert _triton.passes(torch.randn(3, 5, 7)) is None


@contextmanager
def memory_that_is_not_a_number() -> Iterator[None]:
    """torch.empty fills its memory with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@needs_triton
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
@pytest.mark.parametrize("shape", [(1, 3, 2), (5, 70, 3), (9, 3, 5, 7)])
def test_every_value_is_written_and_none_beside_the_tensor_is_used(
    shape: tuple[int, ...], layout: layouts.Layout, residual: bool
) -> None:
    torch.manual_seed(0)
    x, dy, other = (layout(torch.randn(shape)) for _ in range(3))
    extras = [other] if residual else []

    def between_nans(t: Tensor) -> Tensor:
        memory = torch.full((t.numel() + 32,), torch.nan)
        return memory.as_strided(t.shape, t.stride(), 16).copy_(t)

    with passes_of("triton"):
        expected = step(OwnPasses(shape[1], activation="relu"), x, dy, *extras)
        with memory_that_is_not_a_number():
            layer = OwnPasses(shape[1], activation="relu")
            actual = step(layer, *(between_nans(t) for t in (x, dy, *extras)))

    torch.testing.assert_close(vars(actual), vars(expected), rtol=0, atol=0)


@needs_triton
@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
def test_tiles_of_the_size_for_gpus_give_what_one_process_computes(layout: layouts.Layout) -> None:
    torch.manual_seed(0)
    x, dy = (layout(torch.randn(5, 3, 37, 31)) + mean for mean in (20, 0))
    plain = batch_norm(4, 3)
    layer = OwnPasses(3)
    layer.load_state_dict(plain.state_dict())

    with passes_of("triton"), patch.object(_triton, "_TILE", TILE_FOR_GPUS):
        assert _triton.Tiling.of(5, 3, 37 * 31).tiles > 5
        actual = step(layer, x, dy)

    assert_as_one_process([actual], reference_steps(plain, [([x], [dy])])[0], rtol=1e-5, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("by", ["sample", "position"])
@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
def test_any_weights_give_the_weighted_mean_and_variance(
    dtype: torch.dtype, layout: layouts.Layout, by: str
) -> None:
    torch.manual_seed(0)
    x, dy = (layout(torch.randn(5, 17, 3, 4).to(dtype)) for _ in range(2))
    weights = 3 * torch.rand((5, 3, 4) if by == "position" else (5,)) - 0.5
    layer = OwnPasses(17)
    wide = x.double().requires_grad_()
    w = weights.double().view(5, 1, *weights.shape[1:], *[1] * (2 if by == "sample" else 0))
    y = weighted_batch_norm(wide, layer.weight.double(), layer.bias.double(), w)
    expected = torch.autograd.grad(y, wide, dy.double())[0]

    with passes_of("triton"):
        actual = step(layer, x, dy, sample_weight=weights)

    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(actual.output.double(), y.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(actual.input_gradient.double(), expected, rtol=tolerance, atol=tolerance)


def in_another_layout(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1)


@needs_triton
@pytest.mark.parametrize("change", [in_another_layout, layouts.sliced])
def test_tensors_that_saved_tensor_hooks_have_changed_are_left_to_torch(
    change: Callable[[Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    x, dy = torch.randn(4, 5, 6), torch.randn(4, 5, 6)
    with passes_of("triton"):
        expected, actual = (
            step_with_hooks(hooks, x, dy)
            for hooks in (nullcontext(), torch.autograd.graph.saved_tensors_hooks(change, lambda t: t))
        )
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def step_with_hooks(hooks: Any, x: Tensor, dy: Tensor) -> Tensor:
    x = x.to(device()).requires_grad_()
    with hooks:
        y = OwnPasses(5, activation="silu", device=device())(x)
    (gradient,) = torch.autograd.grad(y, x, dy.to(device()))
    return gradient


@needs_triton
def test_where_kernels_do_not_work_there_is_a_warning_and_torchs_operations() -> None:
    meta = torch.device("meta")
    with pytest.warns(UserWarning, match="torch's operations on meta, .* kernels do not work there: "):
        assert not _triton._gives_what_torch_gives(meta)


@pytest.fixture(scope="module")
def nccl_ranks() -> Iterator[Ranks]:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs: NCCL takes one for each rank")
    with Ranks(torch.cuda.device_count(), backend="nccl") as ranks:
        yield ranks


def step_on_own_gpu(rank: int, layer: Any, xs: list[Tensor], dys: list[Tensor]) -> tuple[Step, str]:
    with passes_of("triton", torch.device("cuda", rank)):
        backend: str = dist.get_backend()
        return step(convert_sync_batchnorm(layer), xs[rank], dys[rank]), backend


@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
def test_over_nccl_any_cut_gives_what_one_process_computes(nccl_ranks: Ranks, layout: layouts.Layout) -> None:
    torch.manual_seed(0)
    layer = batch_norm(4, 17)
    sizes = range(nccl_ranks.world_size)  # the first rank has none
    xs, dys = ([layout(torch.randn(n, 17, 5, 4)) for n in sizes] for _ in range(2))

    results = nccl_ranks.run(step_on_own_gpu, layer, xs, dys)

    assert {backend for _, backend in results} == {"nccl"}
    steps = [s for s, _ in results]
    assert_as_one_process(steps, reference_steps(layer, [(xs, dys)])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_step_captured_in_a_cuda_graph_gives_the_bits_of_one_that_is_not() -> None:
    torch.manual_seed(0)
    with passes_of("triton"):
        x = torch.randn(4, 17, 5, 4, device=device(), requires_grad=True)
        layer = OwnPasses(17, activation="relu", device=device())

        def gradients() -> list[Tensor]:
            y = layer(x)
            return [y.detach(), *torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))]

        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            expected = gradients()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = gradients()
        graph.replay()

    torch.testing.assert_close(captured, expected, rtol=0, atol=0)


@needs_triton
@pytest.mark.full
@pytest.mark.parametrize("target", ["cuda:80", "hip:gfx942"])
def test_kernels_compile_for_gpus_that_are_not_here(target: str, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.sync_bn.compile_kernels", target]

    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    kernels = {line.split()[1] for line in done.stdout.splitlines()}
    assert kernels == {
        *("sums", "add_parts", "coefficients", "normalise", "update"),
        *("gradient_sums", "gradient_coefficients", "input_gradient"),
    }
