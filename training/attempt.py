"""One attempt of a queued job, as Ray Jobs starts it: `python -m training.attempt`.

What to do stands in the environment variable SYNCBN_ATTEMPT, a JSON object with the fields of `Order`. The
exit code is 0 or 1; after a failure the last line printed is the verdict (training.failures). Asked to end by
SIGTERM, it has the workers save the run after the step that they are making, and ends with 0.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.failures import Hung, RankFailed, Verdict, write_verdict
from training.folder import RunFolder
from training.spec import parse_spec


@dataclass(frozen=True, kw_only=True)
class Order:
    spec: dict[str, Any]
    workers: int
    name: str
    storage: str
    retries: int
    mlflow_uri: str
    run_id: str


def main() -> int:
    order = Order(**json.loads(os.environ.pop("SYNCBN_ATTEMPT")))
    try:
        _run(order)
    except Exception as error:
        print(getattr(error, "trace", ""), flush=True)  # noqa: T201 (the log of the job)
        print(write_verdict(_verdict(error)), flush=True)  # noqa: T201 (the log of the job)
        return 1
    return 0


def _run(order: Order) -> None:
    import ray

    from training.run import WORKER_ENVIRONMENT, request_stop, run, take_back_requests
    from training.worker import Destination

    folder = RunFolder(path=Path(order.storage) / order.name)
    take_back_requests(folder)
    # Ray's own actors look for "the" cluster, of which a machine may have several.
    address = {"RAY_ADDRESS": os.environ["RAY_ADDRESS"]} if "RAY_ADDRESS" in os.environ else {}
    ray.init(runtime_env={"env_vars": WORKER_ENVIRONMENT | address})
    signal.signal(signal.SIGTERM, lambda *_: request_stop(folder))  # after Ray has set its own
    run(
        parse_spec(order.spec),
        workers=order.workers,
        destination=Destination(mlflow_uri=order.mlflow_uri, run_id=order.run_id),
        folder=folder,
        retries=order.retries,
    )


def _verdict(error: Exception) -> Verdict:
    if isinstance(error, RankFailed):
        return {"type": error.type_name, "message": error.message, "rank": error.rank, "step": error.step}
    if isinstance(error, Hung):
        return {"type": "Hung", "message": error.message, "rank": error.rank, "step": error.step}
    return {"type": type(error).__name__, "message": str(error), "rank": None}


if __name__ == "__main__":
    sys.exit(main())
