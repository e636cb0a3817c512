"""The layer against what stands in its place elsewhere: `python -m benchmarks.sync_bn`, with torch alone."""

from benchmarks.sync_bn.parts import measure

__all__ = ["measure"]
