from __future__ import annotations

import json
import threading

from service.settings import Settings
from service.webhooks.deliverer import Deliverer
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import SECRETS_KEY, Service
from tests.service.webhooks.receiver import receiving


def test_a_webhook_is_added_tried_listed_and_removed(syncbn: Syncbn, service: Service) -> None:
    deliverer = Deliverer(Settings(secrets_key=SECRETS_KEY, webhook_allowed="127.0.0.1"), service.store)
    thread = threading.Thread(target=deliverer.run)
    with receiving() as receiver:
        added = syncbn(
            *("webhooks", "add", receiver.url, "--events", "succeeded, failed", "--label", "team:x"), "--json"
        )
        webhook = json.loads(added.stdout)
        thread.start()
        receiver.answers = [500]
        failed = syncbn("webhooks", "test", webhook["id"])
        tried = syncbn("webhooks", "test", webhook["id"])
        deliverer.stop()
        thread.join()

    assert added.exit_code == 0
    assert (webhook["events"], webhook["labels"]) == (["succeeded", "failed"], {"team": "x"})
    assert webhook["secret"].startswith("whsec_")
    assert (failed.exit_code, failed.stderr.strip()) == (1, "not delivered: the receiver answered 500")
    assert (tried.exit_code, tried.stdout.strip()) == (0, "delivered: the receiver answered 204")
    listed = syncbn("webhooks", "list")
    assert receiver.url in listed.stdout
    assert webhook["secret"] not in listed.stdout + syncbn("webhooks", "list", "--json").stdout
    assert "webhook.test" in syncbn("webhooks", "deliveries", webhook["id"]).stdout
    states = [
        each["state"] for each in json.loads(syncbn("webhooks", "deliveries", webhook["id"], "--json").stdout)
    ]
    assert states == ["delivered", "pending"]
    assert syncbn("webhooks", "remove", webhook["id"]).exit_code == 0
    assert syncbn("webhooks", "remove", webhook["id"]).exit_code == 4
    assert "no webhook is set" in syncbn("webhooks", "list").stdout


def test_what_cannot_be_a_webhook_is_refused_with_its_key(syncbn: Syncbn) -> None:
    inside = syncbn("webhooks", "add", "http://169.254.169.254/")
    state = syncbn("webhooks", "add", "http://127.0.0.1:1/", "--events", "done")

    assert inside.exit_code == state.exit_code == 2
    assert "SYNCBN_WEBHOOK_ALLOWED" in inside.stderr
    assert "events.0" in state.stderr
