"""What the service is told by its environment, read once, at the entry point."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Any, Self

from pydantic import AliasChoices, Field, PrivateAttr, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from service.errors import Refused
from service.logs import LogFormat
from service.public_addresses import Allowed
from training.host.job_user import format_problem
from training.spec import Problem
from training.spec.environment import name_problem, secret_problem

HOST_AND_PORT = re.compile(r"([^\s/:@]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}", re.ASCII)
BUCKET_URL = re.compile(r"s3://[a-z0-9][a-z0-9._-]+[a-z0-9](/[\w.=+~-]+)*/?", re.ASCII)

_SECRET = "SYNCBN_SECRET_"

REPLACED = {
    "SYNCBN_RAY_URL": "is not read any more, since Ray is not asked through its dashboard: set "
    "SYNCBN_RAY_ADDRESS to HOST:PORT of Ray's head, as in `ray start --address` (port 6379 by default)"
}
"""Variables of earlier versions."""


class Settings(BaseSettings):
    """Where the others are and what is allowed. Secrets do not appear in its repr.

    What is not given to the constructor is read from the variables SYNCBN_*; an empty one counts as not set.
    """

    model_config = SettingsConfigDict(
        env_prefix="SYNCBN_",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    database_url: str = Field(
        default="sqlite:///syncbn.db",
        repr=False,  # may hold a password
        description="sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME",
    )
    api_key: SecretStr | None = Field(
        default=None,
        description="The key of the administrator; further keys are made with `syncbn keys`. Without one "
        "only this machine is served, and there only who can read a token that the server makes",
    )
    requests_per_second: int = Field(
        default=2000,
        ge=1,
        description="Requests that one key may send a second, over any ten seconds, to each API process",
    )
    bytes_per_minute: int = Field(
        default=2**32,
        ge=1,
        description="Bytes of code, specs and other bodies that one key may send a minute",
    )
    ray_address: str = Field(
        default="127.0.0.1:6379",
        description="HOST:PORT of Ray's head, as in `ray start --address`; only the scheduler connects",
    )
    ray_token: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("SYNCBN_RAY_TOKEN", "RAY_AUTH_TOKEN")
    )
    mlflow_url: str = Field(
        default="http://127.0.0.1:5000",
        description="The tracking server as this service and the workers reach it",
    )
    mlflow_public_url: str = Field(
        default_factory=lambda others: others.get("mlflow_url", ""),
        description="The tracking server as a browser reaches it; by default the same",
    )
    storage: str = Field(
        default="checkpoints",
        description="Folder of all runs on a file system that every worker shares",
    )
    checkpoints: str | None = Field(
        default=None,
        description="s3://BUCKET/PREFIX of the checkpoints; by default they are in the folder of their run",
    )
    start_seconds: int = Field(
        default=300,
        ge=1,
        description="Maximum number of seconds until all workers of an attempt have joined. After it the "
        "attempt is lost and uses a retry. Preparing the data comes later; training.hang_seconds limits it",
    )
    install_seconds: int = Field(
        default=3600,
        ge=1,
        description="Maximum number of seconds that the installation of a job's requirements may take. It "
        "does not count for SYNCBN_START_SECONDS",
    )
    max_code_bytes: int = Field(
        default=50 * 2**20,
        ge=1,
        description="Largest uploaded archive, packed or unpacked",
    )

    retention_other_checkpoints_days: float | None = Field(
        default=None,
        ge=0,
        description="Days after a job's end when all its checkpoints except the best and the last are "
        "removed; by default they are kept",
    )
    retention_checkpoints_days: float | None = Field(
        default=None,
        ge=0,
        description="Days after a job's end when all its checkpoints are removed, and what a script has "
        "saved; by default they are kept",
    )
    retention_logs_days: float | None = Field(
        default=None,
        ge=0,
        description="Days after a job's end when its logs and exit records are removed; MLflow keeps a copy "
        "of the logs. By default they are kept",
    )
    retention_spools_days: float | None = Field(
        default=None,
        ge=0,
        description="Days after a job's end when its spool of metrics is removed, if MLflow has all of "
        "them; by default it is kept",
    )
    retention_code_days: float | None = Field(
        default=None,
        ge=0,
        description="Days after the end of its last job when a code archive is removed; by default it is "
        "kept",
    )
    retention_audit_days: float = Field(
        default=730,
        ge=1,
        le=36_500,
        description="Days after which an entry of the audit log is removed",
    )
    log_format: LogFormat = Field(
        default=LogFormat.TEXT,
        description="Lines of the log: `text` for people, `json` for a log collector. With `json` it has "
        "also a line for each request and for each change of a job's state",
    )

    job_user: str | None = Field(
        default=None,
        description="Of Ray's nodes that run as root, and of `syncbn up`: the system user of all jobs, or a "
        "range of user ids as `200000-265535`, of which each user of the service gets one. By default jobs "
        "run as the user of Ray's node",
    )
    secrets_key: SecretStr | None = Field(
        default=None,
        description="Encrypts the secrets that users store: 32 random bytes in URL-safe base64, the same for "
        "the API and the scheduler. Without one no secret can be stored",
    )
    secrets: dict[str, SecretStr] = Field(
        default_factory=dict,
        validation_alias=AliasChoices("SYNCBN_SECRET_*"),
        description="SYNCBN_SECRET_TOKEN is the secret TOKEN that jobs may name; the same for the API and "
        "the scheduler",
    )

    webhook_allowed: str = Field(
        default="",
        description="Names of hosts, addresses and networks (10.1.0.0/16), separated by commas, to which "
        "webhooks may go besides public addresses; the same for the API and the scheduler",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Reads also the operator's secrets, each of which has a variable of its own."""
        return init_settings, env_settings, _GivenSecrets(settings_cls)

    @field_validator("secrets")
    @classmethod
    def _can_be_masked(cls, secrets: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in secrets.items():
            if why := name_problem(name) or secret_problem(value.get_secret_value()):
                raise PydanticCustomError("secret", "{name}: {why}", {"name": name[:80], "why": why})
        return secrets

    @field_validator("job_user")
    @classmethod
    def _a_user_or_a_range(cls, text: str | None) -> str | None:
        if text is not None and (problem := format_problem(text)):
            raise PydanticCustomError("job_user", "{problem}", {"problem": problem})
        return text

    @field_validator("secrets_key")
    @classmethod
    def _a_key(cls, key: SecretStr | None) -> SecretStr | None:
        try:
            is_key = key is None or len(base64.urlsafe_b64decode(key.get_secret_value())) == 32
        except ValueError:
            is_key = False
        if not is_key:
            raise PydanticCustomError(
                "secrets_key",
                "must be 32 random bytes in URL-safe base64, as `head -c32 /dev/urandom | base64 | tr +/ -_` "
                "prints",
            )
        return key

    _logs: Path | None = PrivateAttr(default=None)

    @field_validator("webhook_allowed")
    @classmethod
    def _hosts_and_networks(cls, text: str) -> str:
        try:
            Allowed.parse(text)
        except ValueError as error:
            raise PydanticCustomError("webhook_allowed", "{problem}", {"problem": str(error)}) from None
        return text

    @field_validator("database_url")
    @classmethod
    def _a_database(cls, url: str) -> str:
        try:
            known = make_url(url).get_backend_name() in {"sqlite", "postgres", "postgresql"}
        except (ArgumentError, ValueError):
            known = False
        if not known:
            # Not shown: it may hold a password.
            raise PydanticCustomError(
                "database_url", "must be sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME"
            )
        return url

    @field_validator("ray_address")
    @classmethod
    def _host_and_port(cls, address: str) -> str:
        if not HOST_AND_PORT.fullmatch(address):
            raise PydanticCustomError(
                "ray_address",
                "must be HOST:PORT of Ray's head, as in `ray start --address` (its port is 6379 unless "
                "--port says otherwise), neither a URL nor the address of its dashboard",
            )
        return address

    @field_validator("checkpoints")
    @classmethod
    def _in_a_bucket(cls, url: str | None) -> str | None:
        if url is not None and not BUCKET_URL.fullmatch(url):
            # Not shown: it may hold a password.
            raise PydanticCustomError(
                "bucket_url",
                "must be s3://BUCKET or s3://BUCKET/PREFIX and nothing else: credentials (AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY) and an endpoint (AWS_ENDPOINT_URL) belong in the environment of "
                "Ray's nodes, a folder that all workers share in SYNCBN_STORAGE",
            )
        return url and url.rstrip("/")

    @classmethod
    def from_env(cls) -> Self:
        """The settings that the environment says. Raises Refused naming each bad variable."""
        for name, instead in REPLACED.items():
            if os.environ.get(name):
                raise Refused(f"{name}: {instead}", [Problem(key=name, message=instead)])
        try:
            return cls()
        except ValidationError as error:
            # A default that is made from a wrong value says nothing new.
            wrong = [each for each in error.errors() if each["type"] != "default_factory_not_called"]
            problems = [_problem(each) for each in wrong]
            raise Refused("; ".join(map(str, problems)), problems) from None

    def of_stack(self, logs: Path, **changes: Any) -> Self:
        """Returns the settings of the parts that `syncbn up` keeps running. logs: folder of their logs."""
        copy = self.model_copy(update=changes)
        copy._logs = logs
        return copy

    def how_to_start(self, part: str, otherwise: str) -> str:
        """Returns what to do if a part does not run: `otherwise`, unless `syncbn up` starts it.

        part: as its log is named.
        """
        if self._logs is None:
            return otherwise
        return (
            f"a running `syncbn up` starts it again once its process has ended; see the end of "
            f"{self._logs / part}.log, and if it hangs, start `syncbn up` anew"
        )

    def variables(self) -> dict[str, str]:
        """What to give a process of its own so that it reads these settings from its environment."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name != "secrets"}
        given = {f"{_SECRET}{name}": value.get_secret_value() for name, value in self.secrets.items()}
        return given | {
            names_of(name)[0]: value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name, value in values.items()
            if value is not None
        }


class _GivenSecrets(PydanticBaseSettingsSource):
    """The secrets that the operator gives, one variable each."""

    def __call__(self) -> dict[str, Any]:
        found = {
            name.removeprefix(_SECRET): SecretStr(value)
            for name, value in os.environ.items()
            if name.startswith(_SECRET) and value
        }
        return {"secrets": found} if found else {}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return None, field_name, False


def _problem(error: ErrorDetails) -> Problem:
    field = str(error["loc"][0])
    # Another value may hold a password.
    is_number = Settings.model_fields[field].annotation in {int, float, float | None}
    got = f"; got {error['input']!r}" if is_number else ""
    return Problem(key=names_of(field)[0], message=error["msg"] + got)


def names_of(field: str) -> list[str]:
    """The variables that a field is read from, the first that is set."""
    alias = Settings.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return [str(name) for name in alias.choices]
    return [f"{Settings.model_config['env_prefix']}{field}".upper()]
