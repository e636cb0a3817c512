from __future__ import annotations

import base64

import pytest
from pydantic import SecretStr

from service.errors import NotFound, Refused
from service.queue.store import Store
from service.secrets import Secrets
from tests.service.examples import settings_from
from tests.service.live_api import SECRETS_KEY

OTHER_KEY = SecretStr(base64.urlsafe_b64encode(b"another key of just thirty two b").decode())


def test_secrets_are_stored_encrypted_and_given_by_name(store: Store) -> None:
    secrets = Secrets(store, SECRETS_KEY, {"GIVEN": SecretStr("from the operator")})
    secrets.put("TOKEN", "the first value")
    secrets.put("TOKEN", "hush-hush\nä")

    assert secrets.values(["TOKEN", "GIVEN"]) == {"TOKEN": "hush-hush\nä", "GIVEN": "from the operator"}
    assert [(entry.name, entry.source) for entry in secrets.entries()] == [
        ("GIVEN", "operator"),
        ("TOKEN", "stored"),
    ]
    assert secrets.missing(["TOKEN", "GIVEN", "OTHER"]) == ["OTHER"]
    (token,) = store.secret_tokens(["TOKEN"]).values()
    assert b"hush" not in token

    store.put_secret("STOLEN", token)  # whoever can write to the database, and has not the key
    for name, key in (("STOLEN", SECRETS_KEY), ("TOKEN", OTHER_KEY)):
        with pytest.raises(Refused, match=f"set it again with `syncbn secrets set {name}`"):
            Secrets(store, key, {}).values([name])
    with pytest.raises(Refused, match="SYNCBN_SECRETS_KEY is not set"):
        Secrets(store, None, {}).values(["TOKEN"])

    secrets.delete("TOKEN")
    with pytest.raises(NotFound, match="syncbn secrets set TOKEN"):
        secrets.values(["TOKEN"])
    with pytest.raises(NotFound):
        secrets.delete("TOKEN")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("GIVEN", "long enough", "operator"),
        ("LD_PRELOAD", "long enough", "where the workers start"),
        ("TOKEN", "short", "cannot be masked"),
        ("TOKEN", "x" * 40_000, "at most 32768"),
    ],
)
def test_a_secret_that_no_job_could_have_is_not_stored(
    sqlite_store: Store, name: str, value: str, why: str
) -> None:
    secrets = Secrets(sqlite_store, SECRETS_KEY, {"GIVEN": SecretStr("from the operator")})

    with pytest.raises(Refused, match=why) as refused:
        secrets.put(name, value)

    assert value not in str(refused.value)
    assert sqlite_store.secret_names() == {}


def test_the_operators_secrets_are_read_from_variables_and_handed_to_the_scheduler() -> None:
    key = SECRETS_KEY.get_secret_value()
    settings = settings_from({"SYNCBN_SECRET_TOKEN": "hush-hush-hush", "SYNCBN_SECRETS_KEY": key})

    assert settings.secrets["TOKEN"].get_secret_value() == "hush-hush-hush"
    assert "hush" not in repr(settings)
    assert settings_from(settings.variables()) == settings
    for name, value in (
        ("SYNCBN_SECRET_RANK", "hush-hush"),
        ("SYNCBN_SECRET_TOKEN", "hush"),
        ("SYNCBN_SECRETS_KEY", "hush"),
    ):
        with pytest.raises(Refused) as refused:
            settings_from({name: value})
        assert name.removeprefix("SYNCBN_SECRET_") in str(refused.value)
        assert "hush" not in str(refused.value)
