"""Whether the parts of the service run the same versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from service.doctor.finding import Finding, fault, ok, warning
from training.versions import own_versions

ABOUT = "versions"
_EXACT = ("syncbn", "ray", "python")
"""Of these all parts need the same version: orders between them, and Ray's own protocol."""


def differences(
    whose: str, versions: Mapping[str, str], own: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """Yields the versions of a part that differ from those here. An older part names none."""
    own = own_versions() if own is None else own
    if not versions:
        advice = "restart it with this version"
        yield warning(ABOUT, f"{whose} does not say its version: it is older than this one", advice)
        return
    differ = [name for name in _EXACT if name in versions and name in own and versions[name] != own[name]]
    for name in differ:
        yield fault(
            ABOUT,
            f"{whose} runs {name} {versions[name]}, here is {own[name]}",
            "install the same version everywhere, and restart the parts that ran the other one",
        )
    if not differ:
        yield ok(ABOUT, f"{whose} runs the same versions")
