"""Messages to webhooks: signed, at least once, the same at each attempt."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from service.errors import Conflict, Refused
from service.jobs.job import utc_now
from service.queue import stored_webhooks
from service.queue.store import Store
from service.queue.stored_webhooks import Delivery
from service.settings import Settings
from service.webhooks import deliverer as deliverer_module
from service.webhooks import messages
from service.webhooks.deliverer import Deliverer
from service.webhooks.webhooks import NewWebhook, Webhooks
from tests.service.examples import make_spec
from tests.service.live_api import SECRETS_KEY
from tests.service.queue.test_lease import take_over
from tests.service.webhooks.receiver import Receiver, receiving

SETTINGS = Settings(secrets_key=SECRETS_KEY, webhook_allowed="127.0.0.1")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def deliverer(store: Store) -> Iterator[Deliverer]:
    deliverer = Deliverer(SETTINGS, store)
    yield deliverer
    deliverer.stop()
    while deliverer._busy:  # its threads hold connections
        time.sleep(0.01)


def add(store: Store, receiver: Receiver, *states: str, labels: dict[str, str] | None = None) -> NewWebhook:
    after = store.event_horizon().wait()
    return Webhooks(SETTINGS, store).add(receiver.url, states, labels or {}, after=after)


def rounds(deliverer: Deliverer, until: Callable[[], bool]) -> None:
    while not until():
        deliverer.round()
        time.sleep(0.01)


def all_of(store: Store, new: NewWebhook) -> list[Delivery]:
    return store.deliveries(new.webhook.id, limit=100)[0][::-1]


def over(store: Store, new: NewWebhook) -> bool:
    found = all_of(store, new)
    return bool(found) and all(each.state != "pending" for each in found)


def test_each_change_of_state_is_sent_signed(store: Store, receiver: Receiver, deliverer: Deliverer) -> None:
    store.create_job(make_spec(name="before"))
    new = add(store, receiver)
    job = store.create_job(make_spec())[0]
    store.request_cancel(job.id)

    rounds(deliverer, lambda: len(all_of(store, new)) == 2 and over(store, new))

    bodies = [json.loads(body) for _, body in receiver.received]
    assert [body["type"] for body in bodies] == ["job.queued", "job.cancelled"]
    events = store.events_of_job(job.id, after=0, limit=9)
    assert bodies[1]["data"] == {
        "event": events[1].id,
        "job": job.id,
        "name": "ConvNet",
        "state": "cancelled",
        "reason": "cancelled while it waited",
        "attempt": 0,
        "workers": None,
    }
    for (headers, body), event in zip(receiver.received, events, strict=True):
        assert headers["webhook-id"] == f"{new.webhook.id}.{event.id}"
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 300
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
        key = base64.b64decode(new.secret.removeprefix("whsec_"))
        expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
    assert [each.state for each in all_of(store, new)] == ["delivered"] * 2


def test_the_signature_is_that_of_the_published_example() -> None:
    headers = messages.headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        '{"test": 2432232314}',
        1614265330,
    )

    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_webhook_is_told_of_the_states_and_labels_that_it_wants(
    store: Store, receiver: Receiver, deliverer: Deliverer
) -> None:
    new = add(store, receiver, "cancelled", labels={"team": "x"})
    mine = store.create_job(make_spec(labels={"team": "x"}))[0]
    other = store.create_job(make_spec())[0]
    for job in (other, mine):
        store.request_cancel(job.id)

    rounds(deliverer, lambda: over(store, new))

    assert [json.loads(body)["data"]["job"] for _, body in receiver.received] == [mine.id]


def test_a_message_is_the_same_at_each_attempt_until_it_is_taken(
    store: Store, receiver: Receiver, deliverer: Deliverer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliverer_module, "RETRY_SECONDS", (0, 0, 0))
    receiver.answers = [500, 302]
    new = add(store, receiver)
    store.create_job(make_spec())

    rounds(deliverer, lambda: over(store, new))

    (delivery,) = all_of(store, new)
    assert (delivery.state, delivery.attempts, delivery.status) == ("delivered", 3, 204)
    assert len({(headers["webhook-id"], body) for headers, body in receiver.received}) == 1
    assert len(receiver.received) == 3


def test_after_the_last_attempt_a_message_is_given_up_and_says_why(
    store: Store, receiver: Receiver, deliverer: Deliverer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliverer_module, "RETRY_SECONDS", (0, 0))
    receiver.answers = [500] * 3
    new = add(store, receiver)
    store.create_job(make_spec())

    rounds(deliverer, lambda: over(store, new))

    (delivery,) = all_of(store, new)
    assert (delivery.state, delivery.attempts) == ("given_up", 3)
    assert delivery.problem == "the receiver answered 500"
    assert 23 * 3600 < sum(messages.RETRY_SECONDS) < 26 * 3600


def test_an_attempt_that_nobody_ended_is_made_again_later(store: Store, receiver: Receiver) -> None:
    new = add(store, receiver)
    delivery = Webhooks(SETTINGS, store).test(new.webhook.id)
    later = utc_now() + timedelta(seconds=5)

    assert store.begin_attempt(delivery, later)
    assert not store.begin_attempt(delivery, later)  # another process
    assert store.due_delivery(new.webhook.id, utc_now()) is None
    again = store.due_delivery(new.webhook.id, later)
    assert again is not None
    assert (again.attempts, again.message_id) == (1, delivery.message_id)
    assert store.begin_attempt(again, later)
    store.end_attempt(delivery, "given_up", status=None, problem="late")  # of the first, which is over
    assert all_of(store, new)[0].state == "pending"
    store.end_attempt(again, "delivered", status=200, problem="")
    assert all_of(store, new)[0].state == "delivered"
    store.forget_deliveries(utc_now() + timedelta(hours=1))
    assert all_of(store, new) == []


def test_two_processes_make_one_delivery_of_an_event(store: Store, receiver: Receiver) -> None:
    new = add(store, receiver)
    store.create_job(make_spec())
    message = stored_webhooks.Message(id="a", body="{}")

    assert store.add_deliveries(new.webhook, [message], up_to=5)
    assert not store.add_deliveries(new.webhook, [message], up_to=5)

    assert len(all_of(store, new)) == 1


def test_a_scheduler_that_was_superseded_adds_and_sends_nothing_more(
    store: Store, receiver: Receiver
) -> None:
    new = add(store, receiver)
    stale = Deliverer(SETTINGS, store.as_scheduler(take_over(store)))
    store.create_job(make_spec())
    waiting = Webhooks(SETTINGS, store).test(new.webhook.id)
    successor = Deliverer(SETTINGS, store.as_scheduler(take_over(store, "another")))

    stale.run()  # returns by itself
    while stale._busy:
        time.sleep(0.01)
    assert receiver.received == []
    assert all_of(store, new) == [waiting]
    rounds(successor, lambda: len(all_of(store, new)) == 2 and over(store, new))

    assert [each.attempts for each in all_of(store, new)] == [1, 1]
    assert len(receiver.received) == 2


def test_a_message_that_was_taken_while_another_scheduler_took_over_is_not_sent_again(
    store: Store, receiver: Receiver
) -> None:
    receiver.waits = threading.Event()
    new = add(store, receiver)
    stale = Deliverer(SETTINGS, store.as_scheduler(take_over(store)))
    Webhooks(SETTINGS, store).test(new.webhook.id)
    rounds(stale, receiver.arrived.is_set)
    successor = Deliverer(SETTINGS, store.as_scheduler(take_over(store, "another")))

    successor.round()
    receiver.waits.set()
    rounds(successor, lambda: over(store, new))

    (delivery,) = all_of(store, new)
    assert (delivery.state, delivery.attempts) == ("delivered", 1)
    assert len(receiver.received) == 1


def test_a_slow_receiver_delays_only_its_own_webhook(
    store: Store, receiver: Receiver, deliverer: Deliverer
) -> None:
    slow = add(store, receiver)
    receiver.waits = threading.Event()
    with receiving() as quick_receiver:
        quick = add(store, quick_receiver)
        store.create_job(make_spec())
        rounds(deliverer, receiver.arrived.is_set)
        store.create_job(make_spec())

        rounds(deliverer, lambda: len(all_of(store, quick)) == 2 and over(store, quick))

        assert not over(store, slow)
        receiver.waits.set()
        rounds(deliverer, lambda: over(store, slow))


def test_a_secret_is_stored_encrypted_and_the_number_of_webhooks_is_bounded(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = add(store, receiver)
    (stored,) = store.webhooks()
    assert new.secret.encode() not in stored.token
    assert Webhooks(SETTINGS, store).secret(stored) == new.secret

    monkeypatch.setattr(stored_webhooks, "MOST_WEBHOOKS", 1)
    with pytest.raises(Conflict, match="remove one first"):
        add(store, receiver)
    with pytest.raises(Refused, match="SYNCBN_SECRETS_KEY"):
        Webhooks(Settings(webhook_allowed="127.0.0.1"), store).add(receiver.url, [], {}, after=0)
    assert len(store.webhooks()) == 1


def test_the_same_key_gives_the_same_webhook_with_its_secret(store: Store, receiver: Receiver) -> None:
    webhooks = Webhooks(SETTINGS, store)

    first, second = (webhooks.add(receiver.url, [], {}, after=0, idempotency_key="k") for _ in range(2))

    assert first == second
    assert first.secret == second.secret
