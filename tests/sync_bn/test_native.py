"""The loops for the CPU: they are there, they run where they should, and they give what torch gives."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sync_bn import _native
from tests.sync_bn import layouts
from tests.sync_bn.conftest import RanksOf
from tests.sync_bn.one_process import (
    BY_PASSES,
    OwnPasses,
    Passes,
    Step,
    assert_as_one_process,
    batch_norm,
    passes_of,
    reference_steps,
    step,
    steps_in_rank,
    variance_error,
)

KERNELS = Path(_native.__file__).with_name("_kernels.cpp")
needs_library = pytest.mark.skipif(not _native.is_built(), reason="there was no C++ compiler to build it")


def test_library_is_built_where_the_package_is_installed_with_a_compiler() -> None:
    try:
        distribution("syncbn")
    except PackageNotFoundError:
        pytest.skip("the package is not installed, so nobody was asked to build anything")
    if not sys.platform.startswith("linux") or not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("no C++ compiler on PATH, or not Linux")

    assert _native.is_built()


def by_rows(size: int) -> Tensor:
    return torch.randn(5, 6, size)


def by_columns(size: int) -> Tensor:
    return layouts.channels_last(torch.randn(5, size, 3, 2))


BY_ROWS_OR_COLUMNS = pytest.mark.parametrize("values", [by_rows, by_columns])
AROUND_THE_LENGTH_OF_A_VECTOR = pytest.mark.parametrize("size", [15, 16, 17, 31, 32, 33, 48, 49, 100])


@needs_library
@BY_ROWS_OR_COLUMNS
@AROUND_THE_LENGTH_OF_A_VECTOR
def test_loops_run_for_rows_of_16_values_and_more(size: int, values: Callable[[int], Tensor]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert (_native.passes(values(size).to(dtype), None) is not None) == (size >= 16)
    for left_to_torch in (
        values(size).double(),
        values(size).half(),
        values(size)[:0],
        layouts.sliced(values(size)),
        values(size).to("meta"),
    ):
        assert _native.passes(left_to_torch, None) is None


@BY_ROWS_OR_COLUMNS
@AROUND_THE_LENGTH_OF_A_VECTOR
@BY_PASSES
def test_rows_of_any_length_give_what_torchs_layer_gives_in_float64(
    passes: Passes, size: int, values: Callable[[int], Tensor]
) -> None:
    torch.manual_seed(0)
    x, dy = 3 * values(size) + 20, values(size)
    plain = batch_norm(x.dim(), x.shape[1])
    (expected,) = reference_steps(plain, [([x], [dy])])
    unchanged = x.clone(), dy.clone()

    for dy_elsewhere in (dy, dy.contiguous(), layouts.channels_last(dy), layouts.sliced(dy)):
        layer = OwnPasses(x.shape[1])
        layer.load_state_dict(plain.state_dict())
        with passes_of(passes):
            actual = step(layer, x, dy_elsewhere)
        assert_as_one_process([actual], expected, rtol=2e-6, atol=4e-6)
        assert actual.output.stride() == actual.input_gradient.stride() == x.stride()

    assert torch.equal(x, unchanged[0])
    assert torch.equal(dy, unchanged[1])


PARTS: dict[str, tuple[tuple[int, ...], layouts.Layout]] = {
    "(N, C)": ((33,), layouts.contiguous),
    "(N, C, L)": ((3, 33), layouts.contiguous),
    "(N, C, H, W)": ((3, 5, 7), layouts.contiguous),
    "(N, C, H, W) channels last": ((17, 5, 7), layouts.channels_last),
    "(N, C, D, H, W)": ((3, 2, 3, 4), layouts.contiguous),
    "(N, C, D, H, W) channels last": ((17, 2, 3, 4), layouts.channels_last),
    "(N, C, H, W) backwards": ((17, 5, 7), layouts.reversed_dims),
}


@BY_PASSES
@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("cut", [[2, 3], [0, 5], [0, 1, 3]], ids=str)
def test_cut_batch_of_float32_gives_what_one_process_computes(
    ranks_of: RanksOf, cut: list[int], kind: str, passes: Passes
) -> None:
    torch.manual_seed(0)
    rest, layout = PARTS[kind]
    layer = batch_norm(1 + len(rest), rest[0])
    xs, dys = ([layout(torch.randn(n, *rest)) for n in cut] for _ in range(2))

    steps = [s for (s,) in ranks_of(len(cut)).run(steps_in_rank, layer, [(xs, dys)], passes)]

    assert_as_one_process(steps, reference_steps(layer, [(xs, dys)])[0], rtol=1e-5, atol=1e-5)
    for x, s in zip(xs, steps, strict=True):
        if len(x) > 0 and layout is not layouts.reversed_dims:
            assert s.output.stride() == s.input_gradient.stride() == x.stride()


@needs_library
@BY_ROWS_OR_COLUMNS
@pytest.mark.parametrize("size", [16, 33])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
def test_bfloat16_is_float32_rounded_once(
    activation: str | None, size: int, values: Callable[[int], Tensor]
) -> None:
    torch.manual_seed(0)
    x, dy, residual = (values(size).bfloat16() for _ in range(3))
    residual[0, 0], residual[0, 1], residual[0, 2] = torch.nan, torch.inf, -torch.inf
    narrow, wide = (OwnPasses(x.shape[1], activation=activation) for _ in range(2))

    in_bfloat16, in_float32 = step(narrow, x, dy), step(wide, x.float(), dy.float())

    assert torch.equal(in_bfloat16.output, in_float32.output.bfloat16())
    assert torch.equal(in_bfloat16.input_gradient, in_float32.input_gradient.bfloat16())
    torch.testing.assert_close(
        in_bfloat16.parameter_gradients, in_float32.parameter_gradients, rtol=0, atol=0
    )
    torch.testing.assert_close(in_bfloat16.buffers, in_float32.buffers, rtol=0, atol=0)
    with_residual = wide(x.float(), residual.float()).bfloat16()
    torch.testing.assert_close(narrow(x, residual), with_residual, rtol=0, atol=0, equal_nan=True)


@needs_library
def test_bfloat16_is_rounded_to_the_nearest_and_halves_to_even() -> None:
    every_bit_set = torch.tensor([2**31 - 1], dtype=torch.int32).view(torch.float32)  # not a number, too
    halves = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.4e38, 0.1, 1e-40])
    layer = OwnPasses(7)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.cat([halves, every_bit_set]))

    y = layer(torch.randn(4, 7, 16).bfloat16())

    torch.testing.assert_close(y[0, :, 0], layer.bias.bfloat16(), rtol=0, atol=0, equal_nan=True)


def rows_of_several_threads() -> Tensor:
    return torch.randn(7, 19, 41, 37)


def columns_of_several_threads() -> Tensor:
    return layouts.channels_last(torch.randn(7, 40, 31, 29))


@needs_library
@pytest.mark.parametrize("values", [rows_of_several_threads, columns_of_several_threads])
def test_number_of_threads_changes_no_bit(values: Callable[[], Tensor]) -> None:
    torch.manual_seed(0)
    x, dy = values(), values()
    before = torch.get_num_threads()
    steps: list[Step] = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            steps.append(step(OwnPasses(x.shape[1], activation="relu"), x, dy))
    finally:
        torch.set_num_threads(before)

    for s in steps[1:]:
        torch.testing.assert_close(vars(s), vars(steps[0]), rtol=0, atol=0)


def short_rows_of_many_samples() -> Tensor:
    return torch.randn(60_000, 2, 16) + 100


def blank_first_sample() -> Tensor:
    x = 1 + 1e-3 * torch.randn(4096, 2, 16)
    x[0] = 0
    return x


def blank_corner_of_every_sample() -> Tensor:
    x = 1 + 1e-3 * torch.randn(16, 16, 64, 64)
    x[:, :, 0, 0] = 0
    return layouts.channels_last(x)


@needs_library
@pytest.mark.parametrize(
    "values", [short_rows_of_many_samples, blank_first_sample, blank_corner_of_every_sample]
)
def test_variance_is_right_for_many_short_rows_and_where_the_first_values_are_unlike_the_rest(
    values: Callable[[], Tensor],
) -> None:
    torch.manual_seed(0)
    x = values()

    assert _native.passes(x, None) is not None
    assert variance_error(x) < 1e-6


def step_while_torchs_defaults_are_others(rank: int, x: Tensor) -> Tensor:
    layer = OwnPasses(x.shape[1])
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float16)
        with torch.device("meta"):
            return step(layer, x, x + rank).input_gradient
    finally:
        torch.set_default_dtype(default)


def test_default_device_and_dtype_are_not_those_of_scratch_memory(ranks_of: RanksOf) -> None:
    x = torch.randn(4, 300, 16)

    # In a process of its own, because memory on another device would be the end of it.
    for rank, dx in enumerate(ranks_of(2).run(step_while_torchs_defaults_are_others, x)):
        torch.testing.assert_close(dx, step(OwnPasses(300), x, x + rank).input_gradient)


SANITIZED = [
    *("g++", "-g1", "-O1", "-std=c++17", "-fPIC", "-fno-math-errno", "-Wno-psabi", "-Wno-unknown-pragmas"),
    *("-DFOR_EVERY_CPU=", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
]


def sanitizer() -> list[str]:
    """The libraries to load first into a process that loads a sanitized one."""
    if not shutil.which("g++"):
        pytest.skip("no g++ on PATH")
    names = ("libasan.so", "libstdc++.so")
    found = [
        subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names
    ]
    if not all(Path(path).is_absolute() for path in found):
        pytest.skip("g++ has no AddressSanitizer")
    return found


@pytest.fixture(scope="module")
def sanitized_loops(full_run: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    """The loops with AddressSanitizer, as an object file: compiling them takes longer than the calls."""
    sanitizer()
    loops = tmp_path_factory.mktemp("sanitized") / "loops.o"
    subprocess.run([*SANITIZED, "-c", "-o", loops, KERNELS], check=True)
    return loops


def test_hundreds_of_thousands_of_calls_of_the_loops_stay_inside_their_arrays(
    sanitized_loops: Path, tmp_path: Path
) -> None:
    program = tmp_path / "fuzz"
    sources = [sanitized_loops, Path(__file__).with_name("fuzz_kernels.cpp")]
    subprocess.run([*SANITIZED, "-o", program, *sources], check=True)

    done = subprocess.run([program, "300000", "1"], capture_output=True, text=True)

    assert done.stdout == "300000 calls\n", done.stderr


def test_thousands_of_odd_calls_of_the_layer_read_no_memory_that_is_not_theirs(
    sanitized_loops: Path, tmp_path: Path
) -> None:
    library = tmp_path / "kernels.so"
    subprocess.run([*SANITIZED, "-shared", "-o", library, sanitized_loops], check=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(sanitizer()),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "PYTHONPATH": str(Path(_native.__file__).parents[1]),
    }

    script = Path(__file__).with_name("fuzz_layer.py")
    done = subprocess.run(
        [sys.executable, script, library, "3000"], env=environment, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
