"""Delivers messages to webhooks, in the scheduler's process: at least once, each webhook in its own thread.

The database says what is left to do. An attempt is counted before it is made (`begin_attempt`), so a process
that dies during one makes it late, not never; and of two processes one makes it.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta

from service.errors import Refused, ServiceError
from service.jobs.job import utc_now
from service.queue.store import Store
from service.queue.stored_events import EventHorizon
from service.queue.stored_webhooks import Delivery, DeliveryState, Webhook
from service.settings import Settings
from service.webhooks.messages import RETRY_SECONDS, headers, message_of, wanted
from service.webhooks.sender import NotDelivered, send
from service.webhooks.webhooks import Webhooks
from training.protocol import Superseded

log = logging.getLogger(__name__)

POLL_SECONDS, POLL_SECONDS_WITHOUT = 1.0, 5.0
_EVENTS_AT_ONCE = 500
_SHOWN = timedelta(days=7)
"""How long the deliveries that are over are kept."""
_SECONDS_BETWEEN_CLEANINGS = 3600.0


class Deliverer:
    """Tells webhooks of events. `run` blocks until `stop` is called, or another scheduler has taken over."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store, self._webhooks = store, Webhooks(settings, store)
        self._horizon: EventHorizon | None = None
        self._stopped = threading.Event()
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._cleaned_at = time.monotonic()

    def run(self) -> None:
        """Blocks until `stop` is called, or another scheduler has taken over."""
        while not self._stopped.is_set():
            found = False
            try:
                found = self.round()
            except Superseded:  # the dispatcher's rounds hear of it, too
                return
            except ServiceError as error:
                log.warning("%s", error)
            except Exception:  # a bug in one round must not stop all webhooks
                log.exception("webhooks")
            self._stopped.wait(POLL_SECONDS if found else POLL_SECONDS_WITHOUT)

    def stop(self) -> None:
        self._stopped.set()

    def round(self) -> bool:
        """Adds what is new and begins what is due; returns whether there is any webhook."""
        found = self._store.webhooks()
        if self._horizon is None:
            self._horizon = self._store.event_horizon()
        up_to = self._horizon.now() if found else None
        for webhook in found:
            if up_to is not None:
                self._add(webhook, up_to)
            with self._lock:
                idle = webhook.id not in self._busy
                self._busy.add(webhook.id)
            if idle:
                name = f"webhook {webhook.id}"
                threading.Thread(target=self._work, args=(webhook,), name=name, daemon=True).start()
        if time.monotonic() - self._cleaned_at > _SECONDS_BETWEEN_CLEANINGS:
            self._cleaned_at = time.monotonic()
            self._store.forget_deliveries(utc_now() - _SHOWN)
        return bool(found)

    def _add(self, webhook: Webhook, up_to: int) -> None:
        if webhook.position >= up_to:
            return
        labels = webhook.labels.items()
        found = self._store.events(after=webhook.position, up_to=up_to, limit=_EVENTS_AT_ONCE, labels=labels)
        if len(found) == _EVENTS_AT_ONCE:
            up_to = found[-1][0].id
        messages = [message_of(webhook, event, name) for event, name in found if wanted(webhook, event)]
        self._store.add_deliveries(webhook, messages, up_to=up_to)

    def _work(self, webhook: Webhook) -> None:
        """Makes the attempts that are due, oldest first, until one fails; the next round makes the others."""
        try:
            while not self._stopped.is_set():
                delivery = self._store.due_delivery(webhook.id, utc_now())
                if delivery is None or not self._attempted(webhook, delivery):
                    return
        except Superseded:
            self.stop()
        except ServiceError as error:
            log.warning("webhook %s: %s", webhook.id, error)
        except Exception:
            log.exception("webhook %s", webhook.id)
        finally:
            with self._lock:
                self._busy.discard(webhook.id)

    def _attempted(self, webhook: Webhook, delivery: Delivery) -> bool:
        """Makes one attempt; returns whether the message was delivered."""
        last = delivery.attempts >= len(RETRY_SECONDS)
        wait = RETRY_SECONDS[min(delivery.attempts, len(RETRY_SECONDS) - 1)]
        if not self._store.begin_attempt(delivery, utc_now() + timedelta(seconds=wait)):
            return False
        status, problem = self._sent(webhook, delivery)
        done = status is not None and 200 <= status < 300
        state: DeliveryState = "delivered" if done else "given_up" if last else "pending"
        self._store.end_attempt(delivery, state, status=status, problem="" if done else problem)
        return done

    def _sent(self, webhook: Webhook, delivery: Delivery) -> tuple[int | None, str]:
        """Returns the status of the answer, if there is one, and what is wrong if it says no."""
        try:
            signed = headers(
                self._webhooks.secret(webhook), delivery.message_id, delivery.body, int(time.time())
            )
            status = send(webhook.url, signed, delivery.body, self._webhooks.allowed)
        except (NotDelivered, Refused) as error:
            return None, str(error)
        redirected = "; redirects are not followed" if 300 <= status < 400 else ""
        return status, f"the receiver answered {status}{redirected}"
