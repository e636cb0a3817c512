"""Secrets in the database: names, and values that only `service.secrets` can decrypt."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Engine, delete, exc, insert, select, update

from service.jobs.job import utc_now
from service.queue import audit_rows, database
from service.queue.tables import secrets


class StoredSecrets:
    """The stored secrets. Every method raises `Unavailable` as `Store`'s methods do."""

    _engine: Engine

    def put_secret(self, name: str, token: bytes) -> None:
        """Stores or replaces a secret. token: its value, encrypted."""
        row = {"token": token, "updated_at": utc_now()}
        with database.writing(self._engine) as connection:
            if connection.execute(update(secrets).where(secrets.c.name == name).values(row)).rowcount:
                audit_rows.record(connection)
                return
        try:
            with database.writing(self._engine) as connection:
                connection.execute(insert(secrets).values({"name": name, **row}))
                audit_rows.record(connection)
        except exc.IntegrityError:
            self.put_secret(name, token)  # Race closed: another request has stored the same name meanwhile.

    def secret_names(self) -> dict[str, datetime]:
        """Returns the names of all stored secrets, sorted, and when each was set."""
        with database.reading(self._engine) as connection:
            query = select(secrets.c.name, secrets.c.updated_at).order_by(secrets.c.name)
            return {row.name: row.updated_at for row in connection.execute(query)}

    def secret_tokens(self, names: Collection[str]) -> dict[str, bytes]:
        """Returns the encrypted values of those of the secrets that exist."""
        with database.reading(self._engine) as connection:
            query = select(secrets.c.name, secrets.c.token).where(secrets.c.name.in_(names))
            return {row.name: bytes(row.token) for row in connection.execute(query)}

    def delete_secret(self, name: str) -> bool:
        """Deletes a secret; returns whether it existed."""
        with database.writing(self._engine) as connection:
            existed = connection.execute(delete(secrets).where(secrets.c.name == name)).rowcount == 1
            if existed:
                audit_rows.record(connection)
        return existed
