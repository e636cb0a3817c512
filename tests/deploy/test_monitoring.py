"""The dashboard, the alerts and the scrape configuration name what /metrics shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.backends.memory_tracking import FakeResults
from service.jobs import measures
from service.jobs.job import State
from service.jobs.measures import Addition
from service.jobs.waiting_reasons import NAMES
from service.metrics.registry import Metrics
from service.queue.store import Store
from service.settings import Settings
from tests.service.conftest import migrated_sqlite, sqlite_store
from tests.service.live_api import find_ray

DEPLOY = Path(__file__).parents[2] / "deploy"
__all__ = ["migrated_sqlite", "sqlite_store"]
_NAME = re.compile(r"\b(?:syncbn|process)_\w+")
_BY = re.compile(r"\bby \(([^)]*)\)")


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((DEPLOY / "grafana" / "syncbn.json").read_text())
    return board


def expressions() -> list[str]:
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    return [
        *(target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]),
        *(rule["expr"] for group in alerts["groups"] for rule in group["rules"]),
    ]


@pytest.fixture
def labels(sqlite_store: Store, tmp_path: Path) -> dict[str, set[str]]:
    """The labels of each metric that an API with some history shows, by name."""
    find_ray(sqlite_store)
    who = {"device": "gpu", "user": "ada", "experiment": "bn"}
    sqlite_store.add_totals(
        [
            Addition(name=measures.ENDS, labels={"state": "failed", "class": "hang"}),
            Addition(name=measures.RESTARTS, labels={"class": "hang"}),
            Addition(name=measures.DEVICE_SECONDS, labels=who),
            *measures.observed(measures.RUNNING, 5.0, measures.JOB_SECONDS, state="failed"),
        ]
    )
    metrics = Metrics(sqlite_store, FakeResults(), Settings(storage=str(tmp_path)))
    metrics.requests.note("GET", "/v1/jobs", 200, 0.1)
    text = metrics.text("")[0].decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_metric_that_is_asked_for_exists(labels: dict[str, set[str]]) -> None:
    asked = {name for each in expressions() for name in _NAME.findall(each)}

    assert len(asked) > 15
    assert asked <= labels.keys()


def test_every_label_that_is_grouped_by_exists(labels: dict[str, set[str]]) -> None:
    for expression in expressions():
        grouped = {label.strip() for group in _BY.findall(expression) for label in group.split(",")}
        (name,) = set(_NAME.findall(expression)) or {""}
        assert grouped <= labels.get(name, set()), expression


def test_no_metric_is_forgotten_on_the_dashboard(labels: dict[str, set[str]]) -> None:
    shown = {_family(name) for each in expressions() for name in _NAME.findall(each)}
    known = {_family(name) for name in labels if name.startswith("syncbn_")}

    assert known - shown == {"syncbn_info", "syncbn_scheduler_number", "syncbn_job_running_seconds"}


def _family(name: str) -> str:
    return re.sub("_(bucket|sum|count|created)$", "", name)


def test_the_values_of_labels_in_expressions_exist() -> None:
    states = {state.value for state in State}
    text = " ".join(expressions())

    for value in re.findall(r'state!?=~?"([^"]*)"', text):
        assert set(value.split("|")) <= states
    assert len(NAMES) == len(set(NAMES))


def test_the_dashboard_can_be_imported_with_any_data_source() -> None:
    board = dashboard()

    assert board["templating"]["list"][0]["type"] == "datasource"
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {"${datasource}"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


def test_the_scrape_configuration_gives_the_key_from_a_file() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())

    (scrape,) = config["scrape_configs"]
    assert "credentials_file" in scrape["authorization"]
    assert scrape.get("metrics_path", "/metrics") == "/metrics"
    assert all((DEPLOY / "prometheus" / name).exists() for name in config["rule_files"])
