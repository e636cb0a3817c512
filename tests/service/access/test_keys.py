from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from service.access.caller import LOCAL_TOKEN, SERVER_KEY, Caller, Scope
from service.access.keys import USER, ApiKey, id_in, new_key, opens
from service.access.known import Known

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_a_key_is_recognised_and_another_text_is_not() -> None:
    key, text = new_key("ada", Scope.SUBMIT, created_by="root", now=NOW)
    _, other = new_key("ada", Scope.SUBMIT, created_by="root", now=NOW)

    assert id_in(text) == key.id
    assert opens(key, text)
    assert not opens(key, other)
    assert not opens(key, f"syncbn_{key.id}_{other[-43:]}")


@pytest.mark.parametrize("text", ["", "kéy", "syncbn_", "syncbn_abc_def", "a" * 10_000, "syncbn_\ud800_"])
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert id_in(text) is None


def test_what_is_stored_does_not_give_the_key_away() -> None:
    key, text = new_key("ada", Scope.READ, created_by="root", now=NOW)

    assert text.rpartition(f"{key.id}_")[2] not in repr(key)


def test_a_key_ends_at_its_expiry_and_when_it_is_revoked() -> None:
    key, _ = new_key("ada", Scope.READ, created_by="root", now=NOW, expires_at=NOW + timedelta(days=1))

    assert key.problem(NOW) is None
    assert "has expired" in str(key.problem(NOW + timedelta(days=1)))


def test_a_key_is_known_for_a_second_and_until_one_is_revoked() -> None:
    now = 0.0
    key, text = new_key("ada", Scope.READ, created_by="root", now=NOW)
    known = Known[ApiKey](lambda: now)

    known.add(text, key)
    assert (known.find(text), known.find(text[:-1])) == (key, None)
    known.clear()
    assert known.find(text) is None
    known.add(text, key)
    now = 1.0
    assert known.find(text) is None


def test_scopes_include_one_another() -> None:
    assert [[one.includes(other) for other in Scope] for one in Scope] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


@pytest.mark.parametrize(
    ("caller", "owner", "may"),
    [
        (Caller(user="ada", scope=Scope.SUBMIT, credential="k"), "ada", True),
        (Caller(user="ada", scope=Scope.SUBMIT, credential="k"), "bob", False),
        (Caller(user="ada", scope=Scope.SUBMIT, credential="k"), None, False),
        (Caller(user="ada", scope=Scope.READ, credential="k"), "ada", False),
        (Caller(user="ada", scope=Scope.ADMIN, credential="k"), "bob", True),
        (SERVER_KEY, "ada", True),
        (LOCAL_TOKEN, None, True),
    ],
)
def test_a_key_steers_jobs_of_its_own_user_and_admin_all(
    caller: Caller, owner: str | None, may: bool
) -> None:
    assert caller.may_change(owner) is may


@pytest.mark.parametrize("name", ["ada", "ada.lovelace@example.org", "team-1+gpu", "A" * 64])
def test_names_of_users(name: str) -> None:
    assert USER.fullmatch(name)


@pytest.mark.parametrize("name", ["", ".ada", "a b", "a/b", "ada\n", "ä", "A" * 65])
def test_what_is_no_name_of_a_user(name: str) -> None:
    assert not USER.fullmatch(name)
