"""Alembic's revisions of the tables in `service.tables`; `service.database.migrate` applies them."""
