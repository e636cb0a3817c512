"""Alembic's environment: applies the revisions on the connection of `queue.database.migrate`."""

from alembic import context

from service.queue.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # all or nothing on SQLite too
    render_as_batch=True,  # SQLite cannot alter most things in place
)
with context.begin_transaction():
    context.run_migrations()
