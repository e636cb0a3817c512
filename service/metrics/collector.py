"""The figures that come from elsewhere: the database, the scheduler's row, MLflow and the storage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from service import readiness
from service.backends.tracking import Results
from service.jobs import measures
from service.jobs.measures import Addition
from service.metrics import spool
from service.metrics.reading import Reading
from service.queue.counts import Counts
from service.queue.lease import SchedulerRow
from service.queue.store import Store
from service.settings import Settings

_HISTOGRAMS: tuple[tuple[str, str, Sequence[float], tuple[str, ...]], ...] = (
    (measures.WAITING, "Time from submission to the first start", measures.JOB_SECONDS, ()),
    (measures.RUNNING, "Time that all starts of an ended job ran", measures.JOB_SECONDS, ("state",)),
    (
        measures.START_ERROR,
        "Time between an estimated and the actual start of a job, for the first and the last estimate",
        measures.JOB_SECONDS,
        ("estimate",),
    ),
    (measures.ROUNDS, "Duration of the scheduler's rounds", measures.ROUND_SECONDS, ()),
)
_COUNTERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        measures.ENDS,
        "Jobs that the scheduler has ended, by state and class of failure",
        ("state", "class"),
    ),
    (measures.RESTARTS, "Restarts and retries of attempts, by class of failure", ("class",)),
    (
        measures.DEVICE_SECONDS,
        "Seconds that jobs held devices: GPUs, or CPUs if they had no GPU",
        ("device", "user", "experiment"),
    ),
    (measures.ROUND_ERRORS, "Rounds of the scheduler that failed", ()),
    (measures.HOSTS_JOINED, "Machines that have joined the cluster while a scheduler watched", ()),
    (measures.HOSTS_LOST, "Machines that have left the cluster while a scheduler watched", ()),
)


class ServiceCollector(Collector):
    """Reads the parts side by side when Prometheus asks. What does not answer in time is left out.

    syncbn_up says which parts answer.
    """

    def __init__(self, store: Store, results: Results, settings: Settings) -> None:
        self._store, self._storage = store, Path(settings.storage)
        probes = readiness.probes(settings, store, results)
        self._parts = {name: Reading(partial(_answers, probe)) for name, probe in probes.items()}
        self._counts = Reading(store.counts)
        self._totals = Reading(store.totals)
        self._scheduler = Reading(store.scheduler)
        self._spool = Reading(self._read_spool)

    def collect(self) -> Iterator[Metric]:
        """Yields all families. Blocks for at most the deadline of a reading."""
        readings: Iterable[Reading[Any]] = (
            self._counts,
            self._totals,
            self._scheduler,
            self._spool,
            *self._parts.values(),
        )
        for reading in readings:
            reading.begin()
        counts, totals, row = self._counts.value(), self._totals.value(), self._scheduler.value()
        waiting_bytes = self._spool.value()
        up = {name: part.value() is not None for name, part in self._parts.items()}
        if up["database"]:
            up["storage"] &= waiting_bytes is not None
        up["database"] &= counts is not None
        yield _gauge("up", "Whether a part of the service answers", "part", up)
        if counts is not None:
            yield from _of_counts(counts)
        if row is not None:
            yield from _of_scheduler(row)
        if totals is not None:
            yield from _of_totals(totals)
        if waiting_bytes is not None:
            help = "Bytes of metrics of running jobs that have not reached MLflow yet"
            yield GaugeMetricFamily("syncbn_spool_bytes", help, value=waiting_bytes)

    def _read_spool(self) -> int:
        ids = self._store.active_ids(spool.MOST_JOBS)
        return spool.waiting_bytes(self._storage / job_id for job_id in ids)


def _answers(probe: Callable[[], object]) -> bool:
    probe()
    return True


def _of_counts(counts: Counts) -> Iterator[Metric]:
    yield _gauge("jobs", "Jobs by state", "state", counts.states)
    yield _gauge("jobs_waiting", "Queued jobs by class of the reason why they wait", "reason", counts.waiting)


def _of_scheduler(row: SchedulerRow) -> Iterator[Metric]:
    yield GaugeMetricFamily("syncbn_scheduler_number", "Number of the scheduler at work", value=row.number)
    help = "Seconds since the scheduler's last heartbeat"
    yield GaugeMetricFamily("syncbn_scheduler_silent_seconds", help, value=row.silent_seconds)
    yield GaugeMetricFamily("syncbn_hosts", "Machines of the cluster", value=len(row.nodes))
    devices = {"cpu": sum(node.cpus for node in row.nodes), "gpu": sum(node.gpus for node in row.nodes)}
    yield _gauge("devices", "Devices of the cluster, busy or not", "device", devices)


def _of_totals(totals: Iterable[Addition]) -> Iterator[Metric]:
    by_name: dict[str, list[Addition]] = defaultdict(list)
    for total in totals:
        by_name[total.name].append(total)
    for name, help, labels in _COUNTERS:
        counter = CounterMetricFamily(f"syncbn_{name}", help, labels=labels)
        for total in by_name[name] or ([] if labels else [Addition(name=name, value=0)]):
            counter.add_metric([total.labels.get(label, "") for label in labels], total.value)
        yield counter
    for name, help, bounds, labels in _HISTOGRAMS:
        histogram = HistogramMetricFamily(f"syncbn_{name}", help, labels=labels)
        sums = {_values(total, labels): total.value for total in by_name[f"{name}_sum"]}
        for values in sums or ([] if labels else [()]):
            buckets = {
                total.labels["le"]: total.value
                for total in by_name[f"{name}_bucket"]
                if _values(total, labels) == values
            }
            histogram.add_metric(values, _cumulative(buckets, bounds), sums.get(values, 0.0))
        yield histogram


def _values(total: Addition, labels: Iterable[str]) -> tuple[str, ...]:
    return tuple(total.labels.get(label, "") for label in labels)


def _cumulative(buckets: dict[str, float], bounds: Sequence[float]) -> list[tuple[str, float]]:
    """
    >>> _cumulative({"1": 2, "+Inf": 1}, [1, 5])
    [('1', 2.0), ('5', 2.0), ('+Inf', 3.0)]
    """
    found, number = [], 0.0
    for bound in [*(f"{bound:g}" for bound in bounds), "+Inf"]:
        number += buckets.get(bound, 0.0)
        found.append((bound, number))
    return found


def _gauge(name: str, help: str, label: str, values: Any) -> Metric:
    gauge = GaugeMetricFamily(f"syncbn_{name}", help, labels=[label])
    for key, value in values.items():
        gauge.add_metric([str(key)], float(value))
    return gauge
