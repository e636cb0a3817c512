"""The secrets of jobs: given by the service's operator, or set by users and stored encrypted.

The operator gives one as the variable SYNCBN_SECRET_NAME of the API and the scheduler. A user's is encrypted
with SYNCBN_SECRETS_KEY (Fernet: AES-128-CBC with HMAC-SHA256) before it is stored. Only the scheduler
decrypts it, when it starts the job's ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import SecretStr

from service.cipher import Cipher
from service.errors import NotFound, Refused
from service.queue.store import Store
from service.settings import Settings
from training.spec import Problem
from training.spec.environment import name_problem, secret_problem

_NO_KEY = (
    "SYNCBN_SECRETS_KEY is not set, so that no secret can be stored: the service's operator sets it for the "
    "API and the scheduler, or gives the secret itself as SYNCBN_SECRET_NAME"
)


@dataclass(frozen=True, kw_only=True)
class SecretEntry:
    """A secret without its value. updated_at: when it was set; None for the operator's."""

    name: str
    source: Literal["operator", "stored"]
    updated_at: datetime | None = None


class Secrets:
    """The secrets of one queue. Methods that read or write stored ones raise Unavailable as Store's do.

    key: encrypts the stored ones; None: none can be stored or read. given: the operator's, by name.
    """

    def __init__(self, store: Store, key: SecretStr | None, given: Mapping[str, SecretStr]) -> None:
        self._store, self._given = store, given
        self._cipher = Cipher(key, _NO_KEY)

    @classmethod
    def of(cls, settings: Settings, store: Store) -> Secrets:
        return cls(store, settings.secrets_key, settings.secrets)

    def entries(self) -> list[SecretEntry]:
        """Returns all secrets, sorted by name. A name of the operator's hides a stored one."""
        stored = {
            name: SecretEntry(name=name, source="stored", updated_at=updated_at)
            for name, updated_at in self._store.secret_names().items()
        }
        given = {name: SecretEntry(name=name, source="operator") for name in self._given}
        return [entry for _, entry in sorted({**stored, **given}.items())]

    def missing(self, names: Collection[str]) -> list[str]:
        """Returns those of the names under which there is no secret."""
        if not names:
            return []
        return sorted(set(names) - self._given.keys() - self._store.secret_names().keys())

    def put(self, name: str, value: str) -> None:
        """Stores a secret, or replaces its value.

        Raises Refused if the name, the value or the service's settings do not allow it, or if the operator
        gives one of this name.
        """
        if why := name_problem(name) or secret_problem(value):
            raise Refused(f"secret {name[:80]}: {why}", [Problem(key=name[:80], message=why)])
        self._raise_if_given(name)
        token = self._cipher.encrypted(name, value)
        self._store.put_secret(name, token)

    def delete(self, name: str) -> None:
        """Deletes a stored secret. Raises NotFound; Refused if it is the operator's."""
        self._raise_if_given(name)
        if not self._store.delete_secret(name):
            raise NotFound(f"no secret {name!r}")

    def values(self, names: Collection[str]) -> dict[str, str]:
        """Returns the values by name. Raises NotFound, and Refused if one cannot be decrypted."""
        if missing := self.missing(names):
            raise NotFound(missing_secret(missing[0]))
        given = {name: self._given[name].get_secret_value() for name in names if name in self._given}
        tokens = self._store.secret_tokens([name for name in names if name not in given])
        return {**given, **{name: self._decrypted(name, token) for name, token in tokens.items()}}

    def _decrypted(self, name: str, token: bytes) -> str:
        if (value := self._cipher.decrypted(name, token)) is None:
            raise Refused(
                f"secret {name} was stored with another SYNCBN_SECRETS_KEY: set it again with "
                f"`syncbn secrets set {name}`"
            )
        return value

    def _raise_if_given(self, name: str) -> None:
        if name in self._given:
            raise Refused(
                f"secret {name} is given by the service's operator (SYNCBN_SECRET_{name}), who alone can "
                "change it"
            )


def missing_secret(name: str) -> str:
    """Returns what to say about a secret that does not exist."""
    return f"no secret {name} is set; set it with `syncbn secrets set {name}`"
