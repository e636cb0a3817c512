"""All figures that one API process shows, in Prometheus's text format."""

from __future__ import annotations

import platform
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.exposition import choose_encoder

from service.backends.tracking import Results
from service.metrics.collector import ServiceCollector
from service.metrics.requests import RequestFigures
from service.queue.store import Store
from service.settings import Settings


class Metrics:
    """The figures of one API process. requests: counts its requests."""

    def __init__(self, store: Store, results: Results, settings: Settings) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(ServiceCollector(store, results, settings))
        ProcessCollector(registry=self._registry)
        self.requests = RequestFigures(self._registry)
        info = Gauge("syncbn_info", "Versions of the API", ["version", "python"], registry=self._registry)
        info.labels(version("syncbn"), platform.python_version()).set(1)

    def text(self, accept: str) -> tuple[bytes, str]:
        """Returns all figures and their media type. accept: the media types that the client takes."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type
