"""Checks of a layer on a GPU: the host can run ahead, and a step can be captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from benchmarks.sync_bn.cases import Case
from benchmarks.sync_bn.timing import training_step

COLUMNS = (
    "layer",
    "input",
    "difference from float64",
    "host waits for the GPU",
    "CUDA graph of forward and backward",
)
NOTES = (
    "Difference: of output and gradients from those of BatchNorm2d in float64, relative to the largest "
    "value.",
    "Waits: a step under torch.cuda.set_sync_debug_mode('error'), which detects most operations that wait, "
    "not all.",
    "Graph: a step is captured and replayed on another input; output, gradients and running statistics "
    "must equal those of an eager step on that input.",
)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
WARM_UP_STEPS = 3


def run(layer: nn.Module, case: Case) -> tuple[str, str, str]:
    """Returns a table cell for each check; the cell of a failed check says why it failed."""
    x, dy = case.tensor(seed=0, device="cuda").requires_grad_(), case.tensor(seed=1, device="cuda")
    difference = f"{difference_from_float64(layer, x, dy):.1e}"
    return difference, waits_of_host(layer, x, dy), capture(layer, x, dy, case.tensor(seed=2, device="cuda"))


def difference_from_float64(layer: nn.Module, x: Tensor, dy: Tensor) -> float:
    """Returns the largest difference of one step from float64 BatchNorm. `layer` must be new."""
    reference = nn.BatchNorm2d(x.shape[1], device=x.device, dtype=torch.float64)
    expected = _step(reference, x.detach().double().requires_grad_(), dy.double())
    return _difference(_step(layer, x, dy), expected)


def waits_of_host(layer: nn.Module, x: Tensor, dy: Tensor) -> str:
    step = training_step(layer, x, dy)
    for _ in range(WARM_UP_STEPS):  # the group's first collective connects and may block
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return f"yes: {_first_line(error)}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    return "no"


def capture(layer: nn.Module, x: Tensor, dy: Tensor, other_x: Tensor) -> str:
    try:
        replayed, eager = _replayed_and_eager(layer, x, dy, other_x)
    except RuntimeError as error:
        torch.cuda.synchronize()
        return f"not captured: {_first_line(error)}"
    difference = _difference(replayed, eager)
    same = difference <= TOLERANCE[x.dtype]
    return f"captured; replay {'equals' if same else 'differs from'} eager (by {difference:.1e})"


def _replayed_and_eager(
    layer: nn.Module, x: Tensor, dy: Tensor, other_x: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the results of a replayed and of an eager step on `other_x`, from equal running statistics."""
    _warm_up_beside(layer, x, dy)
    graph = torch.cuda.CUDAGraph()
    # In this mode other threads may use CUDA meanwhile: NCCL's watchdog and the backward pass's thread.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = _step(layer, x, dy)
    with torch.no_grad():
        x.copy_(other_x)
    eager_layer = deepcopy(layer)
    graph.replay()
    torch.cuda.synchronize()
    replayed = {**results, **dict(layer.named_buffers())}
    eager = {**_step(eager_layer, x, dy), **dict(eager_layer.named_buffers())}
    return replayed, eager


def _warm_up_beside(layer: nn.Module, x: Tensor, dy: Tensor) -> None:
    """Runs warm-up steps on a separate stream, as graph capture requires."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):
            _step(layer, x, dy)
    torch.cuda.current_stream().wait_stream(stream)


def _step(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    y = layer(x)
    dx, dweight, dbias = torch.autograd.grad(y, (x, *layer.parameters()), dy)
    return {"output": y.detach(), "dx": dx, "dweight": dweight, "dbias": dbias}


def _difference(values: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Returns the largest difference relative to the largest value; NaN if a value is not finite."""
    pairs = [(values[name].double(), expected[name].double()) for name in expected]
    return float(torch.stack([(a - b).abs().max() / b.abs().max() for a, b in pairs]).max())


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
