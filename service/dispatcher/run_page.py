"""What the run of a job or a sweep in the tracking server says: its tags, its description, its spec."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from service.jobs.job import Job
from service.jobs.sweep import Sweep
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
    if job.user is not None:  # known for certain, which the source in the spec is not
        tags["mlflow.user"] = job.user
    tags["mlflow.note.content"] = _description(job)
    return tags


def spec_text(job: Job) -> str:
    """Returns the job's spec as YAML, which can be submitted again: then its source is another one."""
    spec = {key: value for key, value in job.spec.items() if key != "source"}
    return _yaml(spec)


def sweep_tags(sweep: Sweep) -> dict[str, str]:
    """Returns the tags of a sweep's run: who submitted it, and a description with its plan."""
    source = sweep.document["spec"].get("source") or {}
    name = sweep.user or (source.get("user") if isinstance(source, Mapping) else None)
    user = {"mlflow.user": name} if name else {}
    begin = f"Sweep `{sweep.id}` of {len(sweep.points)} jobs: `syncbn show {sweep.id}`\n\n"
    plan = {key: value for key, value in sweep.document.items() if key != "spec" and value not in (None, {})}
    return {**user, "mlflow.note.content": _with_yaml(begin, _yaml(plan), "sweep.yaml")}


def sweep_text(sweep: Sweep) -> str:
    """Returns the spec with the section `sweep` as YAML, which can be submitted again."""
    document = dict(sweep.document)
    spec = {key: value for key, value in document.pop("spec").items() if key != "source"}
    return _yaml(
        {**spec, "sweep": {key: value for key, value in document.items() if value not in (None, {})}}
    )


def _description(job: Job) -> str:
    note = f"Note: {SCRIPT_NOTE}.\n\n" if job.runs_script else ""
    return _with_yaml(f"Job `{job.id}`: `syncbn show {job.id}`\n\n{note}", spec_text(job), "spec.yaml")


def _with_yaml(begin: str, text: str, artifact: str) -> str:
    """Returns the text with YAML after it, which is cut to the longest description; all is in `artifact`."""
    begin, end = f"{begin}```yaml\n", "\n```\n"
    text = text.rstrip()
    room = _LONGEST - len(begin) - len(end)
    if len(text) > room:
        more = f"\n# the rest is in the artifact {artifact}"
        text = text[: room - len(more)] + more
    return f"{begin}{text}{end}"


def _yaml(data: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)


def _key(label: str) -> str:
    key = _NO_KEY.sub("_", label)[:200].strip("/.") or "label"
    return f"label.{key}" if key.startswith(_RESERVED) else key
