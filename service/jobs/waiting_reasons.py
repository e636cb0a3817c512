"""The classes of reasons why jobs wait: a few words for operators in place of a text for the user."""

from __future__ import annotations

OTHER = "other"

CLASSES: tuple[tuple[str, str], ...] = (
    ("new", "%not scheduled yet"),
    ("mlflow", "waits for MLflow%"),
    ("last_attempt", "waits: its last attempt%"),
    ("sweep", "waits: % of at most % of sweep %"),
    ("sweep", "sweep % is paused"),
    ("unavailable", "waits: % is not reachable%"),
    ("behind", "waits behind %"),
    ("no_machine", "no machine in the cluster%"),
    ("never_fits", "needs machines with %"),
    ("never_fits", "needs %ask for less, or add machines"),
    ("never_fits", "needs %ask for fewer workers, or add machines"),
    ("no_room", "needs %"),
    ("updated", "the service was updated%"),
    ("retry", "attempt % was lost: %"),
    ("retry", "starts after a wait of %"),
    ("retry", "waits until its checkpoints are removed%"),
    ("resize", "resizes from %"),
    ("resize", "grows from %"),
    ("preempted", "preempted %"),
)
"""Class and pattern (% is any text), the first that matches. One of a sentence that is not here is OTHER."""

NAMES = (*dict.fromkeys(name for name, _ in CLASSES), OTHER)
