"""Encrypts what is stored and must be read again (Fernet: AES-128-CBC with HMAC-SHA256)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import SecretStr

from service.errors import Refused

if TYPE_CHECKING:
    from cryptography.fernet import Fernet


class Cipher:
    """Encrypts with SYNCBN_SECRETS_KEY. key: None: nothing can be encrypted or decrypted.

    without_key: what to say then.
    """

    def __init__(self, key: SecretStr | None, without_key: str) -> None:
        self._key, self._without_key = key, without_key

    def encrypted(self, name: str, value: str) -> bytes:
        """Returns the value, encrypted. Raises Refused if there is no key."""
        # With its name, so that nobody who can write to the database can pass one value off as another.
        return self._fernet().encrypt(json.dumps([name, value]).encode())

    def decrypted(self, name: str, token: bytes) -> str | None:
        """Returns the value; None if it has another name or key. Raises Refused if there is no key."""
        from cryptography.fernet import InvalidToken

        try:
            stored_name, value = json.loads(self._fernet().decrypt(token))
        except InvalidToken:
            return None
        return str(value) if stored_name == name else None

    def _fernet(self) -> Fernet:
        from cryptography.fernet import Fernet

        if self._key is None:
            raise Refused(self._without_key)
        return Fernet(self._key.get_secret_value())
