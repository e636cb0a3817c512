"""Runs the whole benchmark or parts: `python -m benchmarks.sync_bn [PART …] [--repeats N] [--quick]`.

Needs only torch. A part that runs alone has its own file, such as results/sync_bn_gpu.md.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial

from benchmarks.__main__ import options_of, parser, report, run
from benchmarks.sync_bn.parts import PARTS, measure

PROGRAM = "python -m benchmarks.sync_bn"


def main(arguments: Sequence[str]) -> int:
    asked = parser(PROGRAM, {name: part.what for name, part in PARTS.items()}).parse_args(arguments)
    name = "_".join(["sync_bn", *asked.names])
    command = f"{PROGRAM} {shlex.join(arguments)}".rstrip()
    report(name, partial(measure, names=asked.names or tuple(PARTS)), options_of(asked), command)
    return 0


if __name__ == "__main__":
    run(main)
