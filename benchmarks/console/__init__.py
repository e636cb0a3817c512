"""The console with 10,000 jobs: when a page first paints, how large its files are, what open pages cost."""

from benchmarks.console.parts import measure

__all__ = ["measure"]
