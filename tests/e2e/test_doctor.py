"""`syncbn doctor` on a real stack: in good health, and with its Ray, its token or its host agent broken."""

from __future__ import annotations

import json
import signal
from typing import Any

from pydantic import SecretStr

from service.doctor import ray
from service.doctor.finding import Finding, Level
from service.embedded.stack import settings_of
from service.ports import free_port
from service.queue.store import Store
from tests.e2e.stack import Stack, until

SECONDS = 120.0


def asked(stack: Stack, **changes: Any) -> list[Finding]:
    settings = settings_of(stack.folder)
    assert settings is not None
    store = Store(settings.database_url)
    row = store.scheduler()
    store.close()
    assert row is not None
    own = changes.pop("own", None)
    return list(ray.check(settings.model_copy(update=changes), row.queue, seconds=SECONDS, own=own))


def bad(findings: list[Finding]) -> list[Finding]:
    return [each for each in findings if each.level is not Level.OK]


def test_a_healthy_stack_has_no_fault(stack: Stack) -> None:
    # A host agent is started with the first job at the latest; its warm process takes a while.
    until(lambda: not bad(asked(stack)), "the host agent does not answer")

    result = stack.cli("doctor", "--data-dir", str(stack.folder), "--timeout", "120", "--json")

    answer = json.loads(result.stdout)
    well = {each["about"] for each in answer["findings"] if each["level"] == "ok"}
    assert well >= {"API", "database", "scheduler", "Ray", "agents", "MLflow", "versions", "clock"}
    assert {each["about"] for each in answer["findings"] if each["level"] == "fault"} <= {"disk"}


def test_a_wrong_token_is_named(stack: Stack) -> None:
    (finding,) = asked(stack, ray_token=SecretStr("0" * 64))

    assert finding.level is Level.FAULT
    assert finding.message.endswith("refuses the token")


def test_a_ray_that_is_not_there_is_named(stack: Stack) -> None:
    (finding,) = asked(stack, ray_address=f"127.0.0.1:{free_port()}")

    assert finding.message.startswith("it is down")


def test_an_agent_that_is_stopped_or_of_another_version_is_named(stack: Stack) -> None:
    until(lambda: not bad(asked(stack)), "the host agent does not answer")
    (other,) = bad(asked(stack, own={"ray": "1.2.3"}))
    agent = stack.agent()
    agent.send_signal(signal.SIGSTOP)
    try:
        (silent,) = bad(asked(stack))
    finally:
        agent.send_signal(signal.SIGCONT)

    assert other.about == "versions"
    assert "here is 1.2.3" in other.message
    assert silent.about == "agents"
    assert "has not answered" in silent.message
