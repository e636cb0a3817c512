"""Runs checks side by side, each with a deadline."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from time import monotonic

from service.doctor.finding import Check, Finding, fault


def examine(checks: Iterable[Check]) -> Iterator[Finding]:
    """Yields what the checks find, as they end.

    A check that exceeds its deadline is a fault, and is not waited for. One that raises is a fault too.
    """
    begun = monotonic()
    done: queue.SimpleQueue[tuple[Check, list[Finding]]] = queue.SimpleQueue()
    left = list(checks)
    for check in left:
        threading.Thread(target=_run, args=(check, done), name=check.about, daemon=True).start()
    while left:
        next_deadline = min(check.seconds for check in left)
        try:
            check, findings = done.get(timeout=max(begun + next_deadline - monotonic(), 0.0))
        except queue.Empty:
            check = min(left, key=lambda each: each.seconds)
            findings = [
                fault(
                    check.about, f"no answer in {check.seconds:g} s", "it hangs, or the machine is overloaded"
                )
            ]
        if check in left:  # otherwise its deadline has passed
            left.remove(check)
            yield from findings


def _run(check: Check, done: queue.SimpleQueue[tuple[Check, list[Finding]]]) -> None:
    try:
        findings = list(check.run())
    except Exception as error:  # a bug in one check must not hide what the others find
        text = f"the check failed: {type(error).__name__}: {error}"
        findings = [fault(check.about, text, "report it as a bug")]
    done.put((check, findings))
