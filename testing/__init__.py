"""Processes that tests and benchmarks start: ranks in a process group, a PostgreSQL server."""
