"""Lines of the log, as text and JSON, read from a process that logs."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from service import logs
from service.logs import JsonFormatter, LogFormat, TextFormatter

PROGRAM = """
import logging
from service import foreground, logs
from service.logs import LogFormat
logs.configure(LogFormat("{format}"), text_prefix="scheduler: ")
log = logging.getLogger("service.dispatcher")
with logs.about(job_id="j1", attempt=2):
    log.warning("%s is\\nnot archived", "j1")
log.info("quiet")
logging.getLogger("uvicorn.error").warning("from a library")
logging.getLogger("other").info("never shown")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
foreground.print_line("ready: http://x")
"""


def run(log_format: str) -> tuple[str, str]:
    program = PROGRAM.format(format=log_format)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_each_line_of_json_is_a_record_with_its_ids() -> None:
    out, err = run("json")

    lines = [json.loads(line) for line in err.splitlines()]
    assert [(line["level"], line["logger"], line["message"]) for line in lines] == [
        ("warning", "service.dispatcher", "j1 is\nnot archived"),
        ("info", "service.dispatcher", "quiet"),
        ("warning", "uvicorn.error", "from a library"),
        ("error", "service.dispatcher", "failed"),
    ]
    assert (lines[0]["job_id"], lines[0]["attempt"]) == ("j1", 2)
    assert "job_id" not in lines[1]
    assert lines[0]["time"].endswith("Z")
    assert "ZeroDivisionError" in lines[3]["error"]
    assert json.loads(out)["message"] == "ready: http://x"


def test_text_is_for_people() -> None:
    out, err = run("text")

    assert err.startswith("scheduler: j1 is\nnot archived (attempt=2)\nscheduler: from a library\n")
    assert "quiet" not in err
    assert out == "ready: http://x\n"


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_ids_end_with_their_context(formatter: logging.Formatter) -> None:
    record = logging.LogRecord("service", logging.INFO, "", 0, "hello", (), None)

    with logs.about(request_id="r1"), logs.about(job_id="j1"):
        inside = formatter.format(record)
        assert logs.request_id() == "r1"

    assert "r1" in inside
    assert "j1" in inside
    assert "r1" not in formatter.format(record)
    assert logs.request_id() == ""
    assert LogFormat("json") is LogFormat.JSON
