from __future__ import annotations

import json
import threading
from datetime import datetime

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from service.api.bodies import SpecText, read_spec
from service.api.context import Context
from service.api.job_watcher import JobWatcher
from service.api.lately import Lately
from service.api.notifier import Notifier
from service.api.sse import Streams
from service.backends.memory_tracking import FakeResults
from service.queue.store import Store
from service.settings import Settings
from tests.service.examples import make_data
from training.spec import Spec, SpecError

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=8)
    | st.binary(max_size=4)
    | st.dates()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3),
    max_leaves=8,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec=None), max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
known_keys = st.sampled_from(sorted(Spec.model_fields))


class NoCode(Store):
    """A store whose database nobody asks."""

    def has_code(self, digest: str) -> bool:  # noqa: ARG002
        return False

    def secret_names(self) -> dict[str, datetime]:
        return {}


STOPPING = threading.Event()
STORE = NoCode("sqlite:////nowhere/jobs.db")
SERVICES = Context(
    settings=Settings(),
    store=STORE,
    results=FakeResults(),
    job_watcher=JobWatcher(STORE, str),
    event_horizon=STORE.event_horizon(),
    lately=Lately(),
    streams=Streams(Notifier(lambda _: {}, STOPPING).subscribe, STOPPING),
    stopping=STOPPING,
)


def read(body: bytes, *, is_json: bool = False) -> None:
    """Anything but a spec that can be stored, or a SpecError that can be told, is a bug."""
    try:
        spec, _ = read_spec(SpecText(content=body, is_json=is_json), SERVICES)
    except SpecError as error:
        str(error).encode()
    else:
        json.dumps(spec.model_dump(mode="json"), allow_nan=False, ensure_ascii=False).encode()


@given(st.dictionaries(known_keys, values, max_size=4))
def test_whatever_yaml_can_say_is_a_spec_or_a_problem(changes: dict[str, object]) -> None:
    try:
        body = yaml.safe_dump(make_data(**changes), allow_unicode=True).encode(errors="surrogatepass")
    except (yaml.YAMLError, TypeError):
        return
    read(body)


@given(st.dictionaries(known_keys, json_values, max_size=4), st.booleans())
def test_whatever_json_can_say_is_a_spec_or_a_problem(changes: dict[str, object], escaped: bool) -> None:
    text = json.dumps(make_data(**changes), ensure_ascii=escaped)
    read(text.encode(errors="surrogatepass"), is_json=True)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.booleans())
def test_whatever_bytes_come_are_a_spec_or_a_problem(body: bytes, is_json: bool) -> None:
    read(body, is_json=is_json)


@pytest.mark.parametrize("body", [b"[" * 5000, b"{a: " * 5000, b"- " * 5000, b"a: " + b"9" * 5000])
def test_hostile_bytes_are_a_problem(body: bytes) -> None:
    with pytest.raises(SpecError):
        read_spec(SpecText(content=body, is_json=False), SERVICES)


def test_yaml_may_merge_mappings_and_count_in_its_keys() -> None:
    body = b"""
model: {class_path: training.models.MLP}
data: {class_path: training.data.Digits}
optimizer: &optimizer {class_path: torch.optim.Adam}
lr_scheduler: {class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1}}
loss: {<<: *optimizer, class_path: torch.nn.MSELoss}
labels: {<<: {x: a}, 0: b}
"""

    spec, _ = read_spec(SpecText(content=body, is_json=False), SERVICES)

    assert spec.loss.class_path == "torch.nn.MSELoss"
    assert spec.labels == {"x": "a", "0": "b"}
