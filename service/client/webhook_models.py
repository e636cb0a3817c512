"""The service's answers about webhooks as typed models."""

from __future__ import annotations

from datetime import datetime

from service.client.models import Answer


class Webhook(Answer):
    """An address that is told when jobs change their state.

    events: states; none: any. labels: only jobs with all of these. secret: signs its messages; None except in
    the answer to `Client.add_webhook`.
    """

    id: str
    url: str
    events: list[str]
    labels: dict[str, str]
    created_at: datetime
    secret: str | None = None


class Delivery(Answer):
    """A message to a webhook.

    message_id: the header webhook-id, the same at each attempt. body: what is sent, JSON. state: pending,
    delivered or given_up. next_at: when the next attempt is due. status: of the last answer; None: none.
    problem: why the last attempt failed.
    """

    id: int
    message_id: str
    body: str
    state: str
    attempts: int
    next_at: datetime
    status: int | None = None
    problem: str = ""
    created_at: datetime
    finished_at: datetime | None = None


class WebhookPage(Answer):
    """All webhooks."""

    items: list[Webhook]


class DeliveryPage(Answer):
    """One page of deliveries; `next_cursor` is None on the last."""

    items: list[Delivery]
    next_cursor: str | None = None
