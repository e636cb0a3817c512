"""What the bits of a result depend on beside the spec and the code: versions, and which kernels compute it.

torch, oneDNN and MKL each choose their kernels by what the CPU can do, and block their loops by the sizes of
its caches; kernels of two kinds add in two orders. torch names the set that it has chosen itself. Those of
oneDNN and MKL follow from the CPU's features and from the variables that hold them to a lesser set.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

import torch

from sync_bn import _native, _triton
from training.bits.exchange import Exchange
from training.errors import BuildError
from training.versions import own_versions

Environment = dict[str, str]

TAG, CHANGED_TAG = "syncbn.environment", "syncbn.environment_changed"
UNKNOWN: Environment = {}
"""That of a checkpoint which does not say in which one it was made."""

_AVX512 = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq")
_ONEDNN = (
    (
        ("SSE41", ("sse4_1",)),
        ("AVX", ("avx",)),
        ("AVX2", ("avx2",)),
        ("AVX2_VNNI", ("avx_vnni",)),
        ("AVX2_VNNI_2", ("avx_vnni_int8", "avx_ne_convert")),
    ),
    (
        ("AVX512_CORE", _AVX512),
        ("AVX512_CORE_VNNI", ("avx512_vnni",)),
        ("AVX512_CORE_BF16", ("avx512_bf16",)),
        ("AVX512_CORE_FP16", ("avx512_fp16",)),
        ("AVX512_CORE_AMX", ("amx_int8", "amx_bf16")),
        ("AVX512_CORE_AMX_FP16", ("amx_fp16",)),
    ),
)
"""The sets of ONEDNN_MAX_CPU_ISA, from the least on, with what each needs beside the one before it in its row
(oneDNN, "CPU Dispatcher Control")."""
_MKL = ((("SSE4_2", ("sse4_2",)), ("AVX", ("avx",)), ("AVX2", ("avx2",)), ("AVX512", _AVX512)),)
"""The same for MKL_ENABLE_INSTRUCTIONS."""
_ALIASES = {
    "AVX10_1_512": "AVX512_CORE_FP16",
    "AVX10_1_512_AMX": "AVX512_CORE_AMX",
    "AVX10_1_512_AMX_FP16": "AVX512_CORE_AMX_FP16",
}
_ATEN = ("DEFAULT", "AVX2", "AVX512")

Sets = Sequence[Sequence[tuple[str, Sequence[str]]]]

_WORDS = {
    "torch": "torch",
    "syncbn": "this package",
    "cpu": "the CPU",
    "instructions": "torch's instruction set",
    "onednn": "oneDNN's instruction set",
    "mkl": "MKL's instruction set",
    "mkl_cbwr": "MKL_CBWR",
    "caches": "the CPU's caches",
    "threads": "the number of threads",
    "loops": "the loops of SyncBatchNorm",
    "gpu": "the GPU",
}
_HELD_BY = {
    "instructions": "ATEN_CPU_CAPABILITY",
    "onednn": "ONEDNN_MAX_CPU_ISA",
    "mkl": "MKL_ENABLE_INSTRUCTIONS",
}
_NO_MATTER = {"cpu"}  # the name alone says nothing of the kernels


def own_environment(*, on_gpu: bool) -> Environment:
    """Returns what the results of this process depend on, by name; only what there is here.

    torch, syncbn: versions. cpu: its name. instructions: the set that torch chose, as
    torch.backends.cpu.get_cpu_capability names it. onednn, mkl: the sets of oneDNN and MKL by the names of
    the variables that limit them; the vendor precedes MKL's, on which it depends. mkl_cbwr: the variable that
    chooses another of MKL's branches. caches: bytes. threads: of torch's operations.
    loops: those of SyncBatchNorm, which are compiled where there is a compiler. gpu: name and versions
    of cuDNN and of Triton, for a run on GPUs.
    """
    cpu = torch.cpu.get_capabilities()
    name = str(cpu.get("cpu_name", ""))
    onednn = _highest(_ONEDNN, cpu, os.environ.get("ONEDNN_MAX_CPU_ISA", ""))
    mkl = _highest(_MKL, cpu, os.environ.get("MKL_ENABLE_INSTRUCTIONS", ""))
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    has_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    found = {
        "torch": str(torch.__version__),
        "syncbn": own_versions().get("syncbn", ""),
        "cpu": name,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "onednn": onednn if has_onednn else "",
        "mkl": f"{name.partition(' ')[0]} {mkl}" if has_mkl and mkl else "",
        "mkl_cbwr": os.environ.get("MKL_CBWR", ""),
        "caches": f"L1 {cpu.get('l1d_cache_size', 0)}, L2 {cpu.get('l2_cache_size', 0)}",
        "threads": str(torch.get_num_threads()),
        "loops": "compiled" if _native.is_built() else "torch's",
        "gpu": _gpu() if on_gpu else "",
    }
    return {key: value for key, value in found.items() if value}


def _gpu() -> str:
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return f"{torch.cuda.get_device_name()}, cuDNN {cudnn}, Triton {_triton.version() or 'not installed'}"


def _highest(rows: Sets, cpu: Mapping[str, object], limit: str) -> str:
    """Returns the highest set that a CPU has, up to the one that a variable names; "" if it has none."""
    limit = _ALIASES.get(limit.upper(), limit.upper())
    order = [name for row in rows for name, _ in row]
    there = []
    for row in rows:
        for name, needed in row:
            if not all(cpu.get(feature) for feature in needed):
                break
            there.append(name)
    if limit in order:
        there = [name for name in there if order.index(name) <= order.index(limit)]
    return there[-1] if there else ""


def check_same_on_all(own: Environment, exchange: Exchange) -> None:
    """Raises BuildError if results of the ranks depend on different things. Collective."""
    raise_if_different(exchange.of_ranks((socket.gethostname(), own)))


def raise_if_different(ranks: Sequence[tuple[str, Environment]]) -> None:
    """Raises BuildError if the environments differ. ranks: host and environment of each, in their order."""
    (first_host, first), *others = ranks
    for rank, (host, other) in enumerate(others, start=1):
        keys = _different(first, other)
        if keys:
            text = ", ".join(
                f"{_WORDS[key]} is {first.get(key, 'none')} for rank 0 on {first_host} and "
                f"{other.get(key, 'none')} for rank {rank} on {host}"
                for key in keys
            )
            raise BuildError(
                "training.reproducible",
                f"bits needs workers of one kind, and {text}; {_way_out([each for _, each in ranks])}",
            )


def _different(one: Environment, other: Environment) -> list[str]:
    keys = dict.fromkeys([*one, *other])
    return [key for key in keys if key not in _NO_MATTER and one.get(key) != other.get(key)]


def _way_out(ranks: Sequence[Environment]) -> str:
    keys = dict.fromkeys(key for each in ranks for key in _different(ranks[0], each))
    labels = "run it on hosts of one kind (resources.node_labels)"
    lesser = {_HELD_BY[key]: _lesser(key, ranks) for key in keys if key in _HELD_BY}
    if len(lesser) < len(keys) or not all(lesser.values()):
        return labels
    variables = ", ".join(f"{name}: {value}" for name, value in lesser.items())
    return f"{labels}, or hold all to the lesser set with environment.variables: {{{variables}}}"


def _lesser(key: str, ranks: Sequence[Environment]) -> str:
    """Returns the value of the variable that holds all ranks to the lesser set; "" if nothing does."""
    *vendors, sets = zip(*(each.get(key, "").split(" ") for each in ranks), strict=True)
    if any(len(set(vendor)) > 1 for vendor in vendors):
        return ""
    order = [name for row in {"onednn": _ONEDNN, "mkl": _MKL}.get(key, ()) for name, _ in row] or [*_ATEN]
    if not set(sets) <= set(order):
        return ""
    least: str = min(sets, key=order.index)
    return least.lower() if key == "instructions" else least


def change(before: Sequence[Environment], now: Environment) -> str:
    """Says what differs between the environments in which a checkpoint was made and this one; "" if nothing.

    before: those of all its steps, each once.
    """
    said = []
    for environment in before:
        if environment == UNKNOWN:
            said.append("earlier steps were made in an environment that was not recorded")
        said += [
            f"{_WORDS.get(key, key)} was {environment.get(key, 'none')} and is {now.get(key, 'none')}"
            for key in _different(environment, now)
            if environment != UNKNOWN
        ]
    return "; ".join(dict.fromkeys(said))


def history(before: Sequence[Environment], now: Environment) -> list[Environment]:
    """Returns the environments of a run's steps, each once, after it has gone on in `now`."""
    return [*(each for each in before if _different(each, now)), now]


def tags(now: Environment) -> dict[str, str]:
    """Returns the tags with which a run says what its result depends on."""
    return {f"{TAG}.{key}": value for key, value in now.items()}
