"""One attempt of a queued job, as Ray Jobs starts it: `python -m training.attempt`.

What to do stands in the environment variable SYNCBN_ATTEMPT, a JSON object with the fields of `Order`. The
exit code is 0 for a run that came to its end, else 1. After a failure the last line printed is the verdict
(training.failures). Asked to end by SIGTERM, it has the workers save the run first, and the verdict is
Stopped, or Succeeded if it was at its end already.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.failures import Hung, RankFailed, Verdict, write_verdict
from training.folder import RunFolder
from training.spec import parse_spec
from training.stopping import Stopping


@dataclass(frozen=True, kw_only=True)
class Order:
    spec: dict[str, Any]
    workers: int
    name: str
    storage: str
    checkpoints: str | None
    retries: int
    mlflow_uri: str
    run_id: str


def main() -> int:
    order = Order(**json.loads(os.environ.pop("SYNCBN_ATTEMPT")))
    stopping = Stopping(_folder(order))
    try:
        finished = _run(order, stopping)
    except Exception as error:
        print(getattr(error, "trace", ""), flush=True)  # noqa: T201 (the log of the job)
        _say(_verdict(error))
        return 1
    if stopping.asked:
        kind, message = ("Succeeded", "before it could stop") if finished else ("Stopped", "as asked")
        _say({"type": kind, "message": message, "rank": None, "step": stopping.step})
    return 0 if finished else 1


def _folder(order: Order) -> RunFolder:
    url = order.checkpoints and f"{order.checkpoints}/{order.name}"
    return RunFolder(path=Path(order.storage) / order.name, checkpoints_url=url)


def _run(order: Order, stopping: Stopping) -> bool:
    import ray

    from training.run import WORKER_ENVIRONMENT, run
    from training.worker import Destination

    # Ray's own actors look for "the" cluster, of which a machine may have several.
    address = {"RAY_ADDRESS": os.environ["RAY_ADDRESS"]} if "RAY_ADDRESS" in os.environ else {}
    ray.init(runtime_env={"env_vars": WORKER_ENVIRONMENT | address})
    stopping.on_signal()  # after Ray has set its own
    return run(
        parse_spec(order.spec),
        workers=order.workers,
        destination=Destination(mlflow_uri=order.mlflow_uri, run_id=order.run_id),
        folder=stopping.folder,
        retries=order.retries,
    )


def _say(verdict: Verdict) -> None:
    print(write_verdict(verdict), flush=True)  # noqa: T201 (the log of the job)


def _verdict(error: Exception) -> Verdict:
    if isinstance(error, RankFailed):
        return {"type": error.type_name, "message": error.message, "rank": error.rank, "step": error.step}
    if isinstance(error, Hung):
        return {"type": "Hung", "message": error.message, "rank": error.rank, "step": error.step}
    return {"type": type(error).__name__, "message": str(error), "rank": None}


if __name__ == "__main__":
    sys.exit(main())
