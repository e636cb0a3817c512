"""The queue at volume: submissions per second, lists of up to a million jobs, memory, beside its peers."""

from benchmarks.queue.parts import measure

__all__ = ["measure"]
