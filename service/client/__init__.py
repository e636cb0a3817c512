"""The service's Python client: `from service.client import Client`.

May import nothing else of this project.
"""

from service.client.access import ApiKey, AuditEntry, NewApiKey
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
    Waiting,
)
from service.client.sweep_models import PlannedPoint, Sweep, SweepPoint, SweepValidation

__all__ = [
    "DEFAULT_URL",
    "Amount",
    "ApiKey",
    "AuditEntry",
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
    "NewApiKey",
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
    "WaitTimeout",
    "Waiting",
]
