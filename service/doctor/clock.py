"""Whether clocks of different machines agree."""

from __future__ import annotations

from collections.abc import Iterator

from service.doctor.finding import Finding, ok, warning

TOLERATED_SECONDS = 5.0


def offset_finding(whose: str, seconds: float) -> Iterator[Finding]:
    """Yields whether a clock is right. seconds: how far it is ahead of this machine's; negative: behind."""
    if abs(seconds) <= TOLERATED_SECONDS:
        yield ok("clock", f"{whose} is right")
        return
    way = "ahead of" if seconds > 0 else "behind"
    yield warning(
        "clock",
        f"{whose} is {abs(seconds):.0f} s {way} that of this machine",
        "let NTP set the clocks (timedatectl set-ntp true): until then times of jobs and metrics are wrong",
    )
