"""The Python client of the service: `from service.client import Client`."""

from service.client.errors import (
    ClientError,
    NotFound,
    RequestError,
    ServerUnreachable,
    UnexpectedAnswer,
    WaitTimeout,
)
from service.client.http import DEFAULT_URL, Client
from service.client.models import Failure, Job, Point, Progress, Run, Validation

__all__ = [
    "DEFAULT_URL",
    "Client",
    "ClientError",
    "Failure",
    "Job",
    "NotFound",
    "Point",
    "Progress",
    "RequestError",
    "Run",
    "ServerUnreachable",
    "UnexpectedAnswer",
    "Validation",
    "WaitTimeout",
]
