"""Some samples of an epoch, fetched anew after others, which must be the same to the last bit.

A data set that counts its samples, keeps what it has drawn for one, or changes its data in place, gives a
sample another value depending on which it has given before: on how the samples are dealt to the workers. So
each rank fetches the first samples of some of its shards, twice. The second time others come before them:
the same samples with other random draws, and the shards in the opposite order, on what seems to be another
rank. They must be the same; so must be what the collate_fn makes of them.

Each rank does so for itself, and only tells the others in the end what it has found. Where the loader has
processes, these are others, with a data set as it was when the run started; in a rank's own process what
samples change is put back.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from typing import Any

from torch.utils.data import ConcatDataset, Subset

from training.bits.dry_step import refusal
from training.bits.equal_data import unlike
from training.bits.exchange import Exchange
from training.bits.snapshot import OF_DATA, Snapshot
from training.errors import StepError
from training.loading.batches import ShareLoader
from training.loading.sample_rng import Indices, SeededSamples
from training.loading.sharded import ShardedBatch

log = logging.getLogger(__name__)

SHARDS, SAMPLES = 4, 2
"""How many shards of a rank are fetched again, at most, and how many samples of each."""

_SPLIT = re.compile(r"(?<=\])")
"""Behind the number of a shard, or of a sample, in a path."""

_REPEATED = (
    "when it is simply fetched again",
    "it draws from a generator that is not seeded, or reads the time; draw from the default generators of "
    "torch, NumPy or Python, or from training.samples.sample_generator()",
)
_WORKER = "on another worker", "let it not depend on the rank, or on the process of the loader"
_ORDER = (
    "after other samples",
    "it keeps something from one sample to the next, such as a count, or what it has drawn for a sample, or "
    "changes its data in place; let a sample follow from its index and from random numbers that are drawn "
    "anew each time",
)


@dataclass(frozen=True)
class _Samples:
    """Samples without their number, which a loader takes for that of a batch: collated by nothing."""

    samples: Sequence[Any]


class DataCheck:
    """The check of the data set of a loader. number: of the running micro-batch of the epoch.

    elsewhere: a context in which this rank seems to be another one. doing: is told what is about to be done.
    """

    def __init__(
        self,
        loader: ShareLoader,
        number: int,
        exchange: Exchange,
        *,
        elsewhere: Callable[[], AbstractContextManager[None]],
        doing: Callable[[str], None],
    ) -> None:
        self._loader, self._number, self._exchange = loader, number, exchange
        self._elsewhere, self._doing = elsewhere, doing

    def check(self) -> None:
        """Raises StepError, on all ranks alike, if samples depend on which were fetched before. Collective.

        Changes nothing. If the samples cannot be fetched, there is nothing to compare.
        """
        self._doing("fetching samples again")
        found = self._found()
        self._doing("fetching samples again: waiting for other workers")
        told: list[str] = self._exchange.of_ranks(found)
        if text := next(filter(None, told), ""):
            raise StepError(text)

    def _found(self) -> str:
        """Returns the message of what is found; "" if nothing is."""
        self._share = self._chosen()
        if not self._share:
            return ""
        self._restore: Callable[[], None] = _nothing
        if not self._loader.num_workers:
            self._restore = Snapshot(self._data_set, self._collate, limits=OF_DATA).restore
        try:
            first = self._fetched()
        except Exception as error:
            log.warning("the data set is not checked: to fetch samples again raises %s", _words(error))
            return ""
        text = self._difference(first, after=True, elsewhere=True)
        if not text:
            return ""
        for cause, elsewhere in ((_REPEATED, False), (_WORKER, True)):
            if again := self._difference(first, elsewhere=elsewhere):
                return refusal(again, *cause)
        return refusal(text, *_ORDER)

    def _chosen(self) -> Indices:
        """Returns samples of the batch that is farthest from the running one.

        What a data set keeps of its samples, it does not have of these yet. The last batch may be too short.
        """
        batches = self._loader.batch_sampler
        numbers = range(len(batches))
        farthest = numbers[::-1][:2] if 2 * self._number < len(batches) else numbers[:1]
        return next(filter(None, (_some(batches.indices(number)) for number in farthest)), Indices())

    @property
    def _data_set(self) -> Any:
        samples = self._loader.dataset
        return samples.dataset if isinstance(samples, SeededSamples) else samples

    @property
    def _collate(self) -> Any:
        return getattr(self._loader.collate_fn, "collate", None)

    def _difference(self, first: Sequence[Any], *, after: bool = False, elsewhere: bool = False) -> str:
        """Returns what differs if the samples are fetched in another way, with its verb."""
        again = partial(self._fetched, after=after, elsewhere=elsewhere)
        try:
            path = unlike(first, again())
            if path is None:
                return ""
            bare = unlike(self._fetched(_Samples), again(_Samples))
        except Exception as error:
            return f"the data set ({_name(self._data_set)}) raises {_words(error)}"
        if bare is None:
            (_, *rest) = _SPLIT.split(path, 1)
            name = _name(self._collate)
            return f"the collate_fn ({name}) makes another batch{''.join(rest)} of the same samples"
        (_, *rest) = _SPLIT.split(bare, 2)
        return f"the data set ({_name(self._data_set)}) gives another sample{''.join(rest[1:])}"

    def _fetched(
        self,
        collate: Callable[[list[Any]], Any] | None = None,
        *,
        after: bool = False,
        elsewhere: bool = False,
    ) -> list[Any]:
        """Returns the batches of the shards.

        after: others are fetched before them, and they in the opposite order.
        """
        with ExitStack() as stack:
            stack.callback(self._restore)
            stack.enter_context(self._elsewhere() if elsewhere else nullcontext())
            anew = partial(self._loader.anew, seed=int(elsewhere), collate=collate)
            if not after:
                return _batches(anew([self._share]))
            turned, others = _turned(self._share), _turned(self._share)
            others.epoch += 1
            # Where the loader has two processes, the last batch comes from the second, as do the others.
            processes = min(self._loader.num_workers, 2)
            return _batches(anew([*[others] * max(1, 2 * processes - 1), turned]))[::-1]


def _some(share: Indices) -> Indices:
    """Returns the first samples of some shards."""
    sizes = share.parts or [len(share)]
    ends = [0, *_sums(sizes)]
    chosen = [range(start, min(start + SAMPLES, end)) for start, end in pairwise(ends) if end > start]
    return _taken(share, chosen[:SHARDS])


def _turned(share: Indices) -> Indices:
    """Returns the shards in the opposite order."""
    ends = [0, *_sums(share.parts or ())]
    return _taken(share, [range(start, end) for start, end in pairwise(ends)][::-1])


def _taken(share: Indices, parts: Sequence[range]) -> Indices:
    numbers = list(chain.from_iterable(parts))
    return Indices(
        [share[number] for number in numbers],
        epoch=share.epoch,
        occurrences=share.occurrences and [share.occurrences[number] for number in numbers],
        stand_in=share.stand_in,
        parts=[len(part) for part in parts],
    )


def _sums(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[: number + 1]) for number in range(len(sizes))]


def _batches(fetched: Sequence[Any]) -> list[Any]:
    """Returns the batches of the shards that were fetched last, without the data set's own memory in them."""
    *_, last = fetched
    assert isinstance(last, ShardedBatch)
    return [deepcopy(shard.batch) for shard in last.shards]


def _name(thing: Any) -> str:
    while isinstance(thing, Subset | ConcatDataset):
        thing = thing.dataset if isinstance(thing, Subset) else thing.datasets[0]
    if isinstance(thing, partial):
        return _name(thing.func)
    return str(getattr(thing, "__qualname__", type(thing).__name__))


def _words(error: Exception) -> str:
    return f"{type(error).__name__} ({str(error).strip().splitlines()[-1] if str(error).strip() else ''})"


def _nothing() -> None:
    """Puts nothing back."""
