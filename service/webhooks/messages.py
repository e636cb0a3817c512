"""A message to a webhook, and its signature (Standard Webhooks, https://www.standardwebhooks.com). Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from datetime import datetime

from service.queue.stored_events import JobEvent
from service.queue.stored_webhooks import Message, Webhook

SECRET_PREFIX = "whsec_"
RETRY_SECONDS = (5, 30, 120, 600, 1800, 3600, 7200, 10_800, 14_400, 21_600, 28_800)
"""The wait after each failed attempt, about a day together. The one after the last is the last attempt."""


def new_secret() -> str:
    """Returns a secret of 256 random bits, as Standard Webhooks writes it."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def message_of(webhook: Webhook, event: JobEvent, name: str) -> Message:
    """Returns the message about an event of the job with this name. The same event gives the same message."""
    data = {
        "event": event.id,
        "job": event.job_id,
        "name": name,
        "state": event.state,
        "reason": event.reason,
        "attempt": event.attempt,
        "workers": event.workers,
    }
    return Message(id=f"{webhook.id}.{event.id}", body=_body(f"job.{event.state}", event.at, data))


def test_message(webhook: Webhook, now: datetime) -> Message:
    """Returns a message that says nothing about any job, to try the webhook."""
    data = {"webhook": webhook.id}
    return Message(id=f"{webhook.id}.test-{secrets.token_hex(8)}", body=_body("webhook.test", now, data))


def wanted(webhook: Webhook, event: JobEvent) -> bool:
    """Returns whether the webhook is told of the event. Its labels are compared elsewhere."""
    return event.type == "state" and (not webhook.states or event.state in webhook.states)


def headers(secret: str, message_id: str, body: str, now: int) -> dict[str, str]:
    """Returns the headers of one attempt. now: seconds since the epoch."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{message_id}.{now}.{body}".encode()
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {
        "content-type": "application/json",
        "user-agent": "syncbn",
        "webhook-id": message_id,
        "webhook-timestamp": str(now),
        "webhook-signature": f"v1,{signature}",
    }


def _body(type_: str, time: datetime, data: Mapping[str, object]) -> str:
    return json.dumps({"type": type_, "timestamp": time.isoformat(), "data": data})
