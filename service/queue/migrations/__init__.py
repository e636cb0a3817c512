"""Alembic revisions of the tables in `queue.tables`; `queue.database.migrate` applies them."""
