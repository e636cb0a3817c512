"""What a job's run in the tracking server says about the job: its tags, its description, its spec."""

from __future__ import annotations

import re

import yaml

from service.jobs.job import Job
from training.spec import SCRIPT_NOTE
from training.tracking.run_tags import source_tags

_LONGEST = 5_000  # characters of a tag's value, MLflow's limit
_RESERVED = ("mlflow.", "syncbn.")
_NO_KEY = re.compile(r"[^\w\-. /:]")


def run_tags(job: Job) -> dict[str, str]:
    """Returns the tags of the job's run: its labels, where it comes from and starts from, and a description.

    A label whose key MLflow refuses, or takes for itself, gets a key that it accepts.
    """
    tags = {_key(label): value[:_LONGEST] for label, value in job.labels.items()}
    if digest := job.spec.get("code"):
        tags["syncbn.code"] = digest
    if start := job.spec.get("start_from"):
        state = "the whole state" if start["state"] == "all" else "the weights"
        tags["syncbn.start_from"] = f"job {start['job']}, step {start['checkpoint']}: {state}"
    tags |= source_tags(job.spec, "JOB")
    tags["mlflow.note.content"] = _description(job)
    return tags


def spec_text(job: Job) -> str:
    """Returns the job's spec as YAML, which can be submitted again: then its source is another one."""
    spec = {key: value for key, value in job.spec.items() if key != "source"}
    return yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)


def _description(job: Job) -> str:
    note = f"Note: {SCRIPT_NOTE}.\n\n" if job.runs_script else ""
    begin = f"Job `{job.id}`: `syncbn show {job.id}`\n\n{note}```yaml\n"
    end = "\n```\n"
    spec = spec_text(job).rstrip()
    room = _LONGEST - len(begin) - len(end)
    if len(spec) > room:
        more = "\n# the rest is in the artifact spec.yaml"
        spec = spec[: room - len(more)] + more
    return f"{begin}{spec}{end}"


def _key(label: str) -> str:
    key = _NO_KEY.sub("_", label)[:200].strip("/.") or "label"
    return f"label.{key}" if key.startswith(_RESERVED) else key
