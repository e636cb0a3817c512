"""Which jobs a list shows and in which order, as its URL says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from starlette.datastructures import QueryParams

from service.jobs.job import State
from service.queue.filters import Filters
from service.queue.job_lists import Order
from training.spec import seconds_of

_LONGEST = 500
_MOST_LABELS = 20
TEXTS = ("name", "experiment", "user", "sweep")
"""The filters whose value is taken as it is."""


@dataclass(frozen=True, kw_only=True)
class JobQuery:
    """A query of a list of jobs.

    texts: what was given for each of TEXTS and for since; "" if nothing. labels: each KEY:VALUE as it was
    given. problems: what is wrong with what was given, by the name of the field; then `filters` lacks it.
    """

    order: Order
    states: list[State]
    labels: list[str]
    texts: Mapping[str, str]
    filters: Filters
    problems: Mapping[str, str]

    @property
    def is_filtered(self) -> bool:
        return bool(self.states or self.labels or any(self.texts.values()))

    @property
    def is_by_state_alone(self) -> bool:
        return not (self.labels or any(self.texts.values()))


def read(query: QueryParams) -> JobQuery:
    """Returns the query of a URL. Raises nothing: what is wrong is said beside the field that has it."""
    problems: dict[str, str] = {}
    texts = {name: query.get(name, "").strip() for name in (*TEXTS, "since")}
    labels = [text for each in query.getlist("label") if (text := each.strip())]
    filters: Filters = {"states": _states(query.getlist("state"), problems)}
    for name in TEXTS:
        if (value := _text(name, texts[name], problems)) is not None:
            filters[name] = value  # type: ignore[literal-required]
    if texts["since"] and (since := _moment(texts["since"], problems)) is not None:
        filters["since"] = since
    filters["labels"] = list(_labels(labels, problems))
    order = query.get("order") or Order.NEWEST
    if order not in set(Order):
        problems["order"] = f"There is no order {order!r}: it is one of {', '.join(Order)}."
        order = Order.NEWEST
    return JobQuery(
        order=Order(order),
        states=list(filters["states"]),
        labels=labels,
        texts=texts,
        filters=filters,
        problems=problems,
    )


def _states(given: Iterable[str], problems: dict[str, str]) -> list[State]:
    found = []
    for text in dict.fromkeys(filter(None, given)):
        if text in set(State):
            found.append(State(text))
        else:
            problems["state"] = f"there is no state {text!r}"
    return found


def _text(name: str, value: str, problems: dict[str, str]) -> str | None:
    if len(value) > _LONGEST or "\x00" in value:
        problems[name] = f"write at most {_LONGEST} characters, none of them NUL"
        return None
    return value or None


def _labels(given: list[str], problems: dict[str, str]) -> Iterable[tuple[str, str]]:
    for text in given[:_MOST_LABELS]:
        # KEY=VALUE, as the command line writes it; a key has no colon.
        separator = ":" if ":" in text else "="
        key, found, value = text.partition(separator)
        if not key or not found or "\x00" in text:
            problems["label"] = f"write KEY:VALUE, not {text!r}"
        else:
            yield key.strip(), value.strip()


def _moment(text: str, problems: dict[str, str]) -> datetime | None:
    try:
        if (seconds := seconds_of(text)) is not None:
            return datetime.now(UTC) - timedelta(seconds=seconds)
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        ways = "an age, as 30m, 2h or 3d, or a time in UTC, as 2026-01-31 or 2026-01-31T08:00"
        problems["since"] = f"write {ways}, not {text!r}"
        return None
