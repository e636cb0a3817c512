"""Compiles Triton's kernels for GPUs that need not be there.

    python -m tests.sync_bn.compile_kernels cuda:80

Prints a line for each kernel that has become machine code. A target is cuda:COMPUTE_CAPABILITY or hip:NAME.
"""

import sys
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from sync_bn import _triton_kernels

CONTIGUOUS = {"rows": 2, "columns": 1, "width": 1024}
CHANNELS_LAST = {"rows": 32, "columns": 64, "width": 1}
NUMBERS = {"outer", "channels", "inner", "blocks", "across", "tiles", "splits"}
WIDE = {"parts": "*fp64", "sums": "*fp64", "wide": "*fp64", "count": "*fp64"} | dict.fromkeys(
    ("mean", "variance"), "*fp64"
)
NARROW = dict.fromkeys(("narrow", "factors", "w", "running_mean", "running_var"), "*fp32")
TYPES = WIDE | NARROW | {"batches": "*i64", "eps": "fp32", "momentum": "fp32"}


def cases() -> list[tuple[str, dict[str, Any]]]:
    """The kernels, and what is constant: None for a tensor that is not there."""
    cases: list[tuple[str, dict[str, Any]]] = []
    for tile in (CONTIGUOUS, CHANNELS_LAST):
        cases += [
            ("sums", {"w": None, **tile}),
            ("sums", tile),
            ("normalise", {"slope": 0.0, **tile}),
            ("normalise", {"residual": None, "slope": None, **tile}),
            ("gradient_sums", {"slope": 0.01, **tile}),
            ("gradient_sums", {"residual": None, "slope": None, **tile}),
            ("input_gradient", {"w": None, "slope": 1.0, **tile}),
            ("input_gradient", {"slope": 0.0, **tile}),
        ]
    cases += [("add_parts", {"wide": wide, "rows": 64, "columns": 16}) for wide in (None, ...)]
    cases += [("coefficients", {"weight": w, "bias": w, "columns": 16}) for w in (None, ...)]
    cases += [("gradient_coefficients", {"columns": 16}), ("update", {"columns": 512})]
    # Triton compiles a number that is 1 as a constant.
    return [*cases, *((name, {**constants, **ones(name)}) for name, constants in cases)]


def ones(name: str) -> dict[str, int]:
    return dict.fromkeys(NUMBERS.intersection(getattr(_triton_kernels, name).arg_names), 1)


def compile_case(target: GPUTarget, name: str, constants: dict[str, Any]) -> None:
    kernel = getattr(_triton_kernels, name)
    constants = {key: value for key, value in constants.items() if value is not ...}
    signature = {
        argument: "constexpr"
        if argument in constants
        else "i32"
        if argument in NUMBERS
        else TYPES.get(argument, "*bf16")
        for argument in kernel.arg_names
    }
    source = ASTSource(kernel, signature, constexprs=constants)
    compile(source, target=target, options={"num_warps": 4, "enable_fp_fusion": False})


def main(targets: list[str]) -> None:
    for name in targets:
        backend, arch = name.split(":")
        target = GPUTarget("cuda", int(arch), 32) if backend == "cuda" else GPUTarget("hip", arch, 64)
        for kernel, constants in cases():
            compile_case(target, kernel, constants)
            sys.stdout.write(f"{name} {kernel} {sorted(constants)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
