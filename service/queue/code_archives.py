"""Uploaded code in the database: zip archives, addressed by digest."""

from __future__ import annotations

import hashlib

from sqlalchemy import Engine, exc, insert, select, update

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
        if self._is_used(digest):
            return digest
        with database.writing(self._engine) as connection:
            # Race closed: it is about to be removed, because no job uses it any more.
            known = update(code_archives).where(code_archives.c.digest == digest)
            if connection.execute(known.values(unused_since=None)).rowcount:
                return digest
        try:
            with database.writing(self._engine) as connection:
                row = {"digest": digest, "data": archive, "created_at": utc_now()}
                connection.execute(insert(code_archives).values(row))
                audit_rows.record(connection, f"/v1/code/{digest}")
        except exc.IntegrityError:
            pass  # Race closed: two uploads of the same bytes; the primary key lets one insert through.
        return digest

    def _is_used(self, digest: str) -> bool:
        """Returns whether it is stored and will not be removed soon."""
        query = select(1).where(code_archives.c.digest == digest, code_archives.c.unused_since.is_(None))
        with database.reading(self._engine) as connection:
            return connection.execute(query).one_or_none() is not None

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
