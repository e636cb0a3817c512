"""Uploaded code in the database: zip archives, addressed by digest."""

from __future__ import annotations

import hashlib

from sqlalchemy import Engine, exc, insert, select

from service.errors import NotFound
from service.jobs.job import utc_now
from service.queue import audit_rows, database
from service.queue.tables import code_archives


class CodeArchives:
    """The uploaded archives. Every method raises `Unavailable` as `Store`'s methods do."""

    _engine: Engine

    def put_code(self, archive: bytes) -> str:
        """Stores an archive and returns its digest (SHA-256, hex). Idempotent."""
        digest = hashlib.sha256(archive).hexdigest()
        if self.has_code(digest):
            return digest
        try:
            with database.writing(self._engine) as connection:
                row = {"digest": digest, "data": archive, "created_at": utc_now()}
                connection.execute(insert(code_archives).values(row))
                audit_rows.record(connection, f"/v1/code/{digest}")
        except exc.IntegrityError:
            pass  # Race closed: two uploads of the same bytes; the primary key lets one insert through.
        return digest

    def get_code(self, digest: str) -> bytes:
        """Returns the archive. Raises NotFound."""
        with database.reading(self._engine) as connection:
            query = select(code_archives.c.data).where(code_archives.c.digest == digest)
            data: bytes | None = connection.execute(query).scalar_one_or_none()
        if data is None:
            raise NotFound(f"no uploaded code {digest!r}")
        return data

    def has_code(self, digest: str) -> bool:
        """Returns whether the archive is stored."""
        with database.reading(self._engine) as connection:
            query = select(1).where(code_archives.c.digest == digest)
            return connection.execute(query).one_or_none() is not None
