"""The tab of a job's normalisation: how noisy a worker's statistics are, layer by layer, and what follows."""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.api.context import Context, Services
from service.api.schemas import Document, json_response
from service.errors import Refused
from service.jobs.job import Job
from training.noise_rule import NOTICEABLE, global_noise, reason
from training.spec import shares

router = APIRouter(include_in_schema=False)


class NoiseDocument(Document):
    """What follows from the noise of a worker's means, in sentences."""

    words: list[str]


def values(request: Request, services: Context, job: Job) -> dict[str, Any]:  # noqa: ARG001
    """Returns how often the layers are observed (None: never) and their kind. A script fetches the points."""
    norm = job.spec.get("norm") or {}
    return {"every": norm.get("observe_every"), "kind": norm.get("kind", ""), "noticeable": NOTICEABLE}


@router.get("/data/jobs/{job_id}/noise")
def read_noise(services: Services, job_id: str, noise: Annotated[float, Query(ge=0)]) -> Response:
    """Says which normalisation follows from a job's noise: the median over layers of those over steps."""
    if not math.isfinite(noise):
        raise Refused("noise has to be a number")
    return json_response(NoiseDocument(words=_words(services.store.get(job_id), noise)))


def _words(job: Job, noise: float) -> list[str]:
    share = _share(job)
    if share is None:
        return [
            "The layers share statistics within groups of workers, or each worker has a batch of its own. So "
            "it is not known what part of the samples worker 0 has, and nothing follows for norm.kind."
        ]
    if share >= 1:
        return [
            "With one worker, its statistics are those of the whole batch: its noise is 0, and nothing "
            "follows for norm.kind. Its drift is meaningful."
        ]
    batch_noise = global_noise(noise, share)
    return [
        f"Worker 0 has {100 * share:.3g} % of a batch. With statistics of its own (batch_norm) its means "
        f"would be off by {noise:.2g} σ: the median over the layers.",
        f"Those of the whole batch are off by about {batch_noise:.2g} σ from those of the data.",
        reason(noise, batch_noise),
    ]


def _share(job: Job) -> float | None:
    """Returns the part of a batch's samples that worker 0 has; None if it is not known."""
    training = job.spec.get("training") or {}
    size, workers = training.get("global_batch_size"), job.workers or job.resources.min_workers
    if (job.spec.get("norm") or {}).get("group", "world") != "world" or size is None:
        return None
    batch = max(int(size) // int(training.get("accumulate_grad_batches") or 1), 1)
    return shares(batch, workers)[0] / batch
