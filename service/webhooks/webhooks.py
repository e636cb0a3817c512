"""Adds, lists and removes webhooks. A secret is shown once, and stored encrypted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service.cipher import Cipher
from service.errors import NotFound, Refused
from service.jobs.job import new_id, utc_now
from service.public_addresses import Allowed, check_url
from service.queue.store import Store
from service.queue.stored_webhooks import WEBHOOK_PREFIX, Delivery, Webhook
from service.settings import Settings
from service.webhooks.messages import new_secret, test_message

_NO_KEY = (
    "SYNCBN_SECRETS_KEY is not set, so that no secret of a webhook can be stored: the service's operator "
    "sets it for the API and the scheduler"
)


@dataclass(frozen=True, kw_only=True)
class NewWebhook:
    """A webhook as it is shown when it is added. secret: signs its messages."""

    webhook: Webhook
    secret: str = field(repr=False)


class Webhooks:
    """The webhooks of one queue. Methods raise Unavailable as Store's do."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store = store
        self.allowed = Allowed.parse(settings.webhook_allowed)
        self._cipher = Cipher(settings.secrets_key, _NO_KEY)

    def add(
        self,
        url: str,
        states: Sequence[str],
        labels: Mapping[str, str],
        *,
        after: int,
        idempotency_key: str | None = None,
    ) -> NewWebhook:
        """Adds a webhook that is told of the events after this one. Blocks on the name service.

        The same idempotency key returns the webhook of the first call. Raises Refused for an address that is
        not permitted, and Conflict if there are too many webhooks.
        """
        url = check_url(url, self.allowed)
        now = utc_now()
        webhook_id, secret = new_id(now, WEBHOOK_PREFIX), new_secret()
        webhook = Webhook(
            id=webhook_id,
            url=url,
            states=tuple(states),
            labels=dict(labels),
            token=self._cipher.encrypted(webhook_id, secret),
            position=after,
            created_at=now,
        )
        stored = self._store.create_webhook(webhook, idempotency_key=idempotency_key)
        return NewWebhook(webhook=stored, secret=self.secret(stored))

    def remove(self, webhook_id: str) -> None:
        """Removes a webhook and what is still to be delivered. Raises NotFound."""
        if not self._store.delete_webhook(webhook_id):
            raise NotFound(f"no webhook {webhook_id!r}; `syncbn webhooks list` shows them")

    def test(self, webhook_id: str) -> Delivery:
        """Adds a delivery that says nothing about any job, and returns it. Raises NotFound."""
        webhook = self._store.get_webhook(webhook_id)
        return self._store.add_delivery(webhook.id, test_message(webhook, utc_now()))

    def secret(self, webhook: Webhook) -> str:
        """Returns the secret that signs the webhook's messages. Raises Refused if it cannot be decrypted."""
        if (secret := self._cipher.decrypted(webhook.id, webhook.token)) is None:
            raise Refused(
                f"webhook {webhook.id} was added with another SYNCBN_SECRETS_KEY: remove it and add it again"
            )
        return secret
