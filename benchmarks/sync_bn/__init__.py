"""The layer compared with its alternatives: `python -m benchmarks.sync_bn`. Needs only torch."""

from benchmarks.sync_bn.parts import measure

__all__ = ["measure"]
