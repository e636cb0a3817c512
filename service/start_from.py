"""The checkpoint that a submitted spec starts from: found, checked, and named by its job and step."""

from __future__ import annotations

from service.checkpoints import JobCheckpoints
from service.errors import NotFound
from service.jobs.job import Job
from service.queue.store import Store
from service.settings import Settings
from training.checkpoints.listing import Listed
from training.spec import Norm, Problem, Spec, SpecError, StartFrom


def resolved(spec: Spec, store: Store, settings: Settings) -> Spec:
    """Returns the spec with the job and the step that its `start_from` means, so that both are fixed.

    Raises SpecError if there is no such checkpoint, if its job may still change it, or if nothing is left to
    train. Raises Unavailable if the checkpoints cannot be read.
    """
    if spec.start_from is None:
        return spec
    job = _source(spec.start_from, store)
    if not job.state.ended:
        raise _error(
            "job",
            f"job {job.id} is {job.state}, and its checkpoints still change; wait for its end "
            f"(syncbn wait {job.id}), or end it (syncbn cancel {job.id})",
        )
    try:
        checkpoint = JobCheckpoints(settings, job).chosen(spec.start_from.checkpoint)
    except NotFound as error:
        raise _error("checkpoint", str(error)) from None
    if spec.start_from.state == "all":
        _check_unfinished(spec, job, checkpoint)
        _check_optimizer(spec, job)
        _check_norm(spec, job)
    chosen = spec.start_from.model_copy(update={"job": job.id, "run": None, "checkpoint": checkpoint.step})
    return spec.model_copy(update={"start_from": chosen})


def _source(start_from: StartFrom, store: Store) -> Job:
    if start_from.path is not None:
        raise _error(
            "path",
            "is a path on one machine, and a job runs on others; name the job that saved the checkpoint in "
            "start_from.job, or run the spec on this machine with `syncbn train`",
        )
    if start_from.run is not None:
        if (job := store.with_run(start_from.run)) is None:
            raise _error(
                "run", f"no job has the MLflow run {start_from.run!r}; syncbn show JOB names a job's"
            )
        return job
    assert start_from.job is not None
    try:
        return store.get(start_from.job)
    except NotFound as error:
        raise _error("job", f"{error}; syncbn list --all shows the jobs") from None


def _check_unfinished(spec: Spec, job: Job, checkpoint: Listed) -> None:
    done = {"max_epochs": checkpoint.epoch, "max_steps": checkpoint.step}
    for key, made in done.items():
        limit = getattr(spec.training, key)
        if limit not in {None, -1} and made is not None and made >= limit:
            message = f"is {limit}, and job {job.id} has trained {made} already; give more than {made}"
            raise SpecError([Problem(key=f"training.{key}", message=message)])


def _check_optimizer(spec: Spec, job: Job) -> None:
    """Raises SpecError if the spec has another optimizer or scheduler than the checkpoint."""
    given = spec.model_dump(mode="json")
    changed = [key for key in ("optimizer", "lr_scheduler") if given[key] != job.spec.get(key)]
    if changed:
        message = (
            f"is another one than that of job {job.id}, but the whole state of a checkpoint has its own with "
            "all settings; leave it as it was, or start with the weights alone (start_from.state: weights)"
        )
        raise SpecError([Problem(key=key, message=message) for key in changed])


def _check_norm(spec: Spec, job: Job) -> None:
    """Raises SpecError if the layers of the spec's normalisation have other weights than the checkpoint's."""
    there = Norm.model_construct(**job.spec["norm"])  # unchecked: an earlier version may have stored it
    if spec.norm.layers != there.layers:
        message = (
            f"{spec.norm.kind} has other layers than {there.kind} of job {job.id}, whose whole state cannot "
            "go on in them; leave it as it was, or start with the weights that both have (start_from.state: "
            "weights, strict: false)"
        )
        raise SpecError([Problem(key="norm.kind", message=message)])


def _error(key: str, message: str) -> SpecError:
    return SpecError([Problem(key=f"start_from.{key}", message=message)])
