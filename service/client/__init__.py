"""The service's Python client: `from service.client import Client`.

May import nothing else of this project.
"""

from service.client.client import DEFAULT_URL, Client
from service.client.errors import (
    ClientError,
    NotFound,
    RequestError,
    ServerUnreachable,
    UnexpectedAnswer,
    WaitTimeout,
)
from service.client.models import (
    Amount,
    Checkpoint,
    Cluster,
    Failure,
    File,
    Files,
    Job,
    KeyProblem,
    LogLine,
    Node,
    Point,
    Progress,
    Run,
    Secret,
    Total,
    Validation,
    Version,
    Waiting,
)
from service.client.sweep_models import PlannedPoint, Sweep, SweepPoint, SweepValidation

__all__ = [
    "DEFAULT_URL",
    "Amount",
    "Checkpoint",
    "Client",
    "ClientError",
    "Cluster",
    "Failure",
    "File",
    "Files",
    "Job",
    "KeyProblem",
    "LogLine",
    "Node",
    "NotFound",
    "PlannedPoint",
    "Point",
    "Progress",
    "RequestError",
    "Run",
    "Secret",
    "ServerUnreachable",
    "Sweep",
    "SweepPoint",
    "SweepValidation",
    "Total",
    "UnexpectedAnswer",
    "Validation",
    "Version",
    "WaitTimeout",
    "Waiting",
]
