"""The calls of `Client` for webhooks."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

from service.client.pages import all_items
from service.client.transport import Transport
from service.client.webhook_models import Delivery, DeliveryPage, Webhook, WebhookPage


class WebhookCalls:
    """A part of `Client`, which documents what every call has in common."""

    _server: Transport

    def add_webhook(
        self, url: str, *, events: Iterable[str] = (), labels: Mapping[str, str] | None = None
    ) -> Webhook:
        """Adds a webhook and returns it with its secret, which no other call returns.

        events: states of jobs, as "failed"; none: any. labels: only of jobs with all of these. Raises
        RequestError for an address that webhooks may not go to.
        """
        body = {"url": url, "events": list(events), "labels": dict(labels or {})}
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return self._server.call(Webhook, "POST", "/v1/webhooks", json=body, headers=headers)

    def webhooks(self) -> list[Webhook]:
        """Returns all webhooks, oldest first, without their secrets."""
        return self._server.call(WebhookPage, "GET", "/v1/webhooks").items

    def remove_webhook(self, webhook_id: str) -> None:
        """Removes a webhook, with what is still to be delivered. Raises NotFound."""
        self._server.send("DELETE", _path(webhook_id))

    def test_webhook(self, webhook_id: str) -> Delivery:
        """Queues a test message and returns its delivery without waiting. Raises NotFound.

        Not idempotent: after a lost connection, two messages may be sent.
        """
        return self._server.call(Delivery, "POST", f"{_path(webhook_id)}/test")

    def deliveries(self, webhook_id: str, *, limit: int | None = None) -> Iterator[Delivery]:
        """Yields the webhook's deliveries, newest first, at most `limit` (None: all). Raises NotFound."""
        path = f"{_path(webhook_id)}/deliveries"
        yield from all_items(
            lambda position: self._server.call(DeliveryPage, "GET", path, params=position), limit
        )


def _path(webhook_id: str) -> str:
    return f"/v1/webhooks/{quote(webhook_id, safe='')}"
