"""The section `source` of a job specification: who submitted it, and the state of its code in git."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from training.spec.parts import Part

LONGEST_URL = 500
_URL = re.compile(r"((ssh://)?[\w.-]+@)?[^\s@?#]+")


class Source(Part):
    """Who submitted the job, and the state of its code in git. It changes nothing about the job."""

    user: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="Login name of whoever submitted the job, as the command line says; not verified",
    )
    commit: str | None = Field(
        default=None,
        pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$",
        description="Commit that was checked out in the code directory",
    )
    dirty: bool | None = Field(
        default=None, description="Whether the code differs from that commit; null: not known"
    )
    url: str | None = Field(
        default=None,
        max_length=LONGEST_URL,
        description="Address of the git remote, without user name, password, query and fragment",
    )

    @field_validator("url")
    @classmethod
    def _has_no_secret(cls, url: str | None) -> str | None:
        if url is not None and not is_public(url):
            # Without the value: it may contain a password.
            raise ValueError(
                "is no address of a git remote that everybody may read; write it without spaces, user name "
                "(except git@ of ssh), password, query and fragment"
            )
        return url


def is_public(url: str) -> bool:
    """Returns whether the address has no password, and no user name except for ssh."""
    return _URL.fullmatch(url) is not None
