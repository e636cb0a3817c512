"""Routes /v1/webhooks: addresses that are told when jobs change their state."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.api.bodies import json_body, json_schema
from service.api.context import Services
from service.api.jobs import IdempotencyKey
from service.api.problems import documented
from service.api.webhook_schemas import (
    DeliveryDocument,
    DeliveryPage,
    NewWebhookDocument,
    WebhookDocument,
    WebhookPage,
    WebhookRequest,
)
from service.webhooks.webhooks import Webhooks

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


def _webhooks(services: Services) -> Webhooks:
    return Webhooks(services.settings, services.store)


OurWebhooks = Annotated[Webhooks, Depends(_webhooks)]


@router.post(
    "",
    status_code=201,
    responses=documented(409, 413, 415, 422, 503),
    openapi_extra=json_schema(WebhookRequest),
    summary="Add a webhook",
)
def add_webhook(
    services: Services,
    webhooks: OurWebhooks,
    request: Annotated[WebhookRequest, json_body(WebhookRequest)],
    idempotency_key: IdempotencyKey = None,
) -> NewWebhookDocument:
    """From now on each change of a job's state is sent there, signed, at least once.

    The answer has the secret, which no other answer shows. A repeated Idempotency-Key returns the webhook of
    the first request.
    """
    after = services.event_horizon.wait()
    states = list(dict.fromkeys(request.events))
    added = webhooks.add(request.url, states, request.labels, after=after, idempotency_key=idempotency_key)
    return NewWebhookDocument.of(added.webhook, secret=added.secret)


@router.get("", responses=documented(503), summary="List webhooks")
def list_webhooks(services: Services) -> WebhookPage:
    """Returns all of them, without their secrets."""
    return WebhookPage(items=[WebhookDocument.of(webhook) for webhook in services.store.webhooks()])


@router.delete("/{webhook_id}", status_code=204, responses=documented(404, 503), summary="Remove a webhook")
def remove_webhook(webhooks: OurWebhooks, webhook_id: str) -> None:
    """Nothing more is sent there, not even what is still to be delivered."""
    webhooks.remove(webhook_id)


@router.post(
    "/{webhook_id}/test", status_code=202, responses=documented(404, 503), summary="Send a test message"
)
def test_webhook(webhooks: OurWebhooks, webhook_id: str) -> DeliveryDocument:
    """Queues a message of type `webhook.test`; its delivery says how it went."""
    return DeliveryDocument.model_validate(webhooks.test(webhook_id))


@router.get(
    "/{webhook_id}/deliveries", responses=documented(404, 422, 503), summary="List a webhook's deliveries"
)
def list_deliveries(
    services: Services,
    webhook_id: str,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: str | None = None,
) -> DeliveryPage:
    """Returns what was sent and what is to be sent, newest first; what is over is kept for a week."""
    services.store.get_webhook(webhook_id)
    found, next_cursor = services.store.deliveries(webhook_id, cursor=cursor, limit=limit)
    return DeliveryPage(
        items=[DeliveryDocument.model_validate(each) for each in found], next_cursor=next_cursor
    )
