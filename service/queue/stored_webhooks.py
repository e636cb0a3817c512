"""Webhooks in the database, and what is to be delivered to them.

A change of a job writes an event in its transaction (service.queue.stored_events). `add_deliveries` turns
events into deliveries, and moves the webhook's position among the events in the same transaction: a kill at
any moment loses no event, and makes no two deliveries of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, delete, exc, func, insert, select, update

from service.errors import Conflict, NotFound
from service.jobs.job import utc_now
from service.queue import cursors, database
from service.queue.tables import webhook_deliveries, webhooks
from service.queue.writes import Writes

WEBHOOK_PREFIX = "w"
"""The first character of a webhook's id."""
MOST_WEBHOOKS = 100

DeliveryState = Literal["pending", "delivered", "given_up"]


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """An address that is told when jobs change their state.

    states: only changes to these; none: to any. labels: only of jobs with all of these. token: the secret,
    encrypted. position: the id of the last event for which deliveries are written.
    """

    id: str
    url: str
    states: tuple[str, ...]
    labels: dict[str, str]
    token: bytes = field(repr=False)
    position: int
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Message:
    """What a webhook is sent. id: the same at each attempt. body: JSON."""

    id: str
    body: str


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A message to one webhook.

    attempts: those made or begun. next_at: when the next one is due. status: of the last answer. problem: why
    the last attempt failed.
    """

    id: int
    webhook_id: str
    message_id: str
    body: str
    state: DeliveryState
    attempts: int
    next_at: datetime
    status: int | None
    problem: str
    created_at: datetime
    finished_at: datetime | None


class StoredWebhooks(Writes):
    """The stored webhooks. Every method raises `Unavailable` as `Store`'s methods do."""

    def create_webhook(self, webhook: Webhook, *, idempotency_key: str | None = None) -> Webhook:
        """Stores a webhook and returns it; the one of an earlier call with the same key, if there was one.

        Raises Conflict if there are too many.
        """
        row = {column.name: getattr(webhook, column.name, None) for column in webhooks.columns}
        try:
            with database.writing(self._engine) as connection:
                count = connection.execute(select(func.count()).select_from(webhooks)).scalar_one()
                connection.execute(insert(webhooks).values({**row, "idempotency_key": idempotency_key}))
                if count >= MOST_WEBHOOKS:
                    raise Conflict(f"there are {MOST_WEBHOOKS} webhooks already: remove one first")
        except exc.IntegrityError:
            # Race closed: two requests with one key. The unique constraint lets one insert through.
            (existing,) = self._webhooks(
                select(webhooks).where(webhooks.c.idempotency_key == idempotency_key)
            )
            return existing
        return webhook

    def webhooks(self) -> list[Webhook]:
        """Returns all webhooks, oldest first."""
        return self._webhooks(select(webhooks).order_by(webhooks.c.id))

    def get_webhook(self, webhook_id: str) -> Webhook:
        """Returns the webhook. Raises NotFound."""
        found = self._webhooks(select(webhooks).where(webhooks.c.id == webhook_id))
        if not found:
            raise NotFound(f"no webhook {webhook_id!r}; `syncbn webhooks list` shows them")
        return found[0]

    def delete_webhook(self, webhook_id: str) -> bool:
        """Deletes a webhook with its deliveries; returns whether it existed."""
        with database.writing(self._engine) as connection:
            return connection.execute(delete(webhooks).where(webhooks.c.id == webhook_id)).rowcount == 1

    def add_deliveries(self, webhook: Webhook, messages: Sequence[Message], *, up_to: int) -> bool:
        """Adds deliveries for the events up to this one, unless the webhook's position has moved.

        Returns whether it has not. Raises Superseded for a scheduler without the lease.
        """
        with self._writing() as connection:
            # Race closed: two schedulers, one of which does not know yet that the other has taken over.
            seen = [webhooks.c.id == webhook.id, webhooks.c.position == webhook.position]
            if connection.execute(update(webhooks).where(*seen).values(position=up_to)).rowcount == 0:
                return False
            if messages:
                connection.execute(insert(webhook_deliveries), [_new(webhook.id, each) for each in messages])
            return True

    def add_delivery(self, webhook_id: str, message: Message) -> Delivery:
        """Adds one delivery that belongs to no event, and returns it."""
        with database.writing(self._engine) as connection:
            query = insert(webhook_deliveries).values(_new(webhook_id, message)).returning(*_DELIVERY)
            return _delivery_of(connection.execute(query).one())

    def due_delivery(self, webhook_id: str, now: datetime) -> Delivery | None:
        """Returns the oldest delivery of the webhook that is due; None if none is."""
        query = select(*_DELIVERY).where(
            webhook_deliveries.c.webhook_id == webhook_id,
            webhook_deliveries.c.state == "pending",
            webhook_deliveries.c.next_at <= now,
        )
        with database.reading(self._engine) as connection:
            row = connection.execute(query.order_by(webhook_deliveries.c.id).limit(1)).one_or_none()
        return None if row is None else _delivery_of(row)

    def begin_attempt(self, delivery: Delivery, next_at: datetime) -> bool:
        """Counts an attempt before it is made, so that no other process makes it; returns whether it may be.

        next_at: when the next one is due, should this process end before it says how this one went. Raises
        Superseded for a scheduler without the lease.
        """
        values = {"attempts": delivery.attempts + 1, "next_at": next_at}
        with self._writing() as connection:
            return _update_delivery(connection, delivery, delivery.attempts, values)

    def end_attempt(
        self, delivery: Delivery, state: DeliveryState, *, status: int | None, problem: str
    ) -> None:
        """Writes how the attempt went that was begun for `delivery`. Does nothing if another has begun.

        A scheduler that has lost the lease since may write it, too: otherwise a message that was taken would
        be sent again. Its successor's attempts have other numbers.
        """
        values: dict[str, Any] = {"state": state, "status": status, "problem": problem}
        if state != "pending":
            values["finished_at"] = utc_now()
        with database.writing(self._engine) as connection:
            _update_delivery(connection, delivery, delivery.attempts + 1, values)

    def deliveries(
        self, webhook_id: str, *, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[Delivery], str | None]:
        """Returns a page of deliveries, newest first, and the cursor of the next page (None: the last).

        Raises Refused for a bad cursor.
        """
        query = select(*_DELIVERY).where(webhook_deliveries.c.webhook_id == webhook_id)
        if cursor is not None:
            query = query.where(webhook_deliveries.c.id < cursors.decode_number(cursor))
        with database.reading(self._engine) as connection:
            rows = connection.execute(query.order_by(webhook_deliveries.c.id.desc()).limit(limit + 1))
            found = [_delivery_of(row) for row in rows]
        return found[:limit], cursors.encode(str(found[limit - 1].id)) if len(found) > limit else None

    def forget_deliveries(self, before: datetime) -> None:
        """Deletes deliveries that were finished before this time.

        Raises Superseded for a scheduler without the lease.
        """
        with self._writing() as connection:
            connection.execute(delete(webhook_deliveries).where(webhook_deliveries.c.finished_at < before))

    def _webhooks(self, query: Select[Any]) -> list[Webhook]:
        with database.reading(self._engine) as connection:
            return [_webhook_of(row) for row in connection.execute(query)]


def _update_delivery(
    connection: Connection, delivery: Delivery, attempts: int, values: dict[str, Any]
) -> bool:
    # Race closed: two processes that found the same delivery due.
    guards = [
        webhook_deliveries.c.id == delivery.id,
        webhook_deliveries.c.state == "pending",
        webhook_deliveries.c.attempts == attempts,
    ]
    return connection.execute(update(webhook_deliveries).where(*guards).values(values)).rowcount == 1


_DELIVERY: Iterable[Any] = webhook_deliveries.columns


def _new(webhook_id: str, message: Message) -> dict[str, Any]:
    now = utc_now()
    return {
        "webhook_id": webhook_id,
        "message_id": message.id,
        "body": message.body,
        "state": "pending",
        "attempts": 0,
        "next_at": now,
        "problem": "",
        "created_at": now,
    }


def _webhook_of(row: Row[Any]) -> Webhook:
    values = dict(row._mapping)
    del values["idempotency_key"]
    return Webhook(**{**values, "token": bytes(row.token)})


def _delivery_of(row: Row[Any]) -> Delivery:
    return Delivery(**row._mapping)
