"""The load that one API, one PostgreSQL, one scheduler and one MLflow carry."""

from benchmarks.capacity.parts import measure

__all__ = ["measure"]
