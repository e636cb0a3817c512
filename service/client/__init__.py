"""The service's Python client: `from service.client import Client`.

May import nothing else of this project.
"""

from service.client.access import ApiKey, AuditEntry, NewApiKey
from service.client.client import DEFAULT_URL, Client
from service.client.cluster_models import Amount, Cluster, Node, Waiting
from service.client.errors import (
    ClientError,
    NotFound,
    RequestError,
    ServerUnreachable,
    UnexpectedAnswer,
    WaitTimeout,
)
from service.client.models import (
    Checkpoint,
    CleanupItem,
    CleanupPage,
    Command,
    ExpectedStart,
    Failure,
    File,
    Files,
    Job,
    JobEvent,
    KeyProblem,
    LastFailure,
    LogLine,
    Point,
    Progress,
    Run,
    Secret,
    Total,
    Validation,
    Version,
)
from service.client.sweep_models import PlannedPoint, Sweep, SweepPoint, SweepValidation
from service.client.webhook_models import Delivery, Webhook

__all__ = [
    "DEFAULT_URL",
    "Amount",
    "ApiKey",
    "AuditEntry",
    "Checkpoint",
    "CleanupItem",
    "CleanupPage",
    "Client",
    "ClientError",
    "Cluster",
    "Command",
    "Delivery",
    "ExpectedStart",
    "Failure",
    "File",
    "Files",
    "Job",
    "JobEvent",
    "KeyProblem",
    "LastFailure",
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
    "Version",
    "WaitTimeout",
    "Waiting",
    "Webhook",
]
