"""Why a run hung, from what its ranks have written: for the driver, after the workers ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.hangs.rank_files import HangReport, Position, RankFiles
from training.hangs.stack_traces import Frame, Stack, innermost, shown, waits_for_ranks


@dataclass(frozen=True, kw_only=True)
class Hang:
    """rank: the one that the others wait for; None if there is no single one. step: where it stands.

    message: one line that says what happened, a blank one, and the stacks of all ranks.
    """

    rank: int | None
    step: int
    message: str


@dataclass(frozen=True, kw_only=True)
class _Account:
    """What is known of a rank: its report, or only its last position, or nothing."""

    rank: int
    position: Position | None = None
    report: HangReport | None = None

    @property
    def is_silent(self) -> bool:
        return self.report is None and not (self.position and self.position.ended)

    @property
    def is_old(self) -> bool:
        return self.is_silent or (self.report is not None and self.report.dumped)

    @property
    def stack(self) -> Stack:
        return self.report.stack if self.report else ()

    @property
    def frame(self) -> Frame | None:
        return innermost(self.stack)

    @property
    def waits(self) -> bool:
        return waits_for_ranks(self.stack)

    @property
    def step(self) -> int:
        return self.position.step if self.position else 0

    @property
    def doing(self) -> str:
        return (
            f"at step {self.step} ({self.position.doing})"
            if self.position
            else "before its first sign of life"
        )


def hang_report(folder: Path) -> Hang | None:
    """None: no rank was found to make no progress, whatever else ended the run."""
    files = RankFiles(folder)
    reports = {report.position.rank: report for report in files.reports()}
    if not reports:
        return None
    positions = {position.rank: position for position in files.positions()}
    accounts = [
        _Account(
            rank=rank,
            position=reports[rank].position if rank in reports else positions.get(rank),
            report=reports.get(rank),
        )
        for rank in range(next(iter(reports.values())).position.world_size)
    ]
    blamed = _blamed(accounts)
    return Hang(
        rank=blamed[0].rank if len(blamed) == 1 else None,
        step=_step(accounts, blamed),
        message=f"{_what_happened(accounts, blamed)}\n\n{_stacks(accounts)}",
    )


def _step(accounts: Sequence[_Account], blamed: Sequence[_Account]) -> int:
    """The last that a rank wrote before it could not any more may be old; those that wait know better."""
    is_old = any(account.is_old for account in blamed)
    return max(account.step for account in (accounts if is_old else blamed))


def _blamed(accounts: Sequence[_Account]) -> Sequence[_Account]:
    """Those that the others wait for: each rule narrows down whom the one before left, or says nothing."""
    left = accounts
    for rule in (_silent_ones, _with_fewest_collectives, _not_waiting, _with_fewest_steps):
        left = rule(left) or left
    return left


def _silent_ones(accounts: Sequence[_Account]) -> Sequence[_Account]:
    return [account for account in accounts if account.is_silent]


def _with_fewest_collectives(accounts: Sequence[_Account]) -> Sequence[_Account]:
    """A rank that waits has entered a collective that the one it waits for has not."""
    counts = [account.position.collectives if account.position else None for account in accounts]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return []
    return [account for account, count in zip(accounts, known, strict=True) if count == min(known)]


def _not_waiting(accounts: Sequence[_Account]) -> Sequence[_Account]:
    return [account for account in accounts if not account.waits]


def _with_fewest_steps(accounts: Sequence[_Account]) -> Sequence[_Account]:
    return [account for account in accounts if account.step == min(each.step for each in accounts)]


def _what_happened(accounts: Sequence[_Account], blamed: Sequence[_Account]) -> str:
    others = [account for account in accounts if account not in blamed]
    if len(blamed) > 1 and all(account.waits for account in blamed):
        seconds = min(account.report.seconds for account in blamed if account.report)
        parts = [f"{ranks} waited {_waiting(one)}" for ranks, one in _alike(blamed, _waiting)]
        why = (
            "they wait in different collectives, one of them has skipped some"
            if len(parts) > 1
            else "they wait in the same collective: the network between them failed, or they called it for "
            "tensors of different shapes"
        )
        return f"no rank made progress for {seconds:.0f} s: {'; '.join(parts)}; {why}"
    parts = [f"{ranks} {_stuck(one)}" for ranks, one in _alike(blamed, _stuck)]
    whom = "it" if len(blamed) == 1 else "them"

    def stood(account: _Account) -> str:
        return f"{f'waited for {whom}' if _is_ahead(account, blamed) else 'stood'} {_waiting(account)}"

    return "; ".join(parts + [f"{ranks} {stood(one)}" for ranks, one in _alike(others, stood)])


def _is_ahead(account: _Account, blamed: Sequence[_Account]) -> bool:
    """On a GPU a rank waits wherever it reads a value, after the collective; its stack does not tell."""
    return account.waits or account not in (_with_fewest_collectives([account, *blamed]) or [account])


def _stuck(account: _Account) -> str:
    if account.is_silent:
        return (
            f"did not answer, last heard of {account.doing}: its process is stopped, or its machine is gone"
        )
    if account.report is None:
        return f"had left the training {account.doing}"
    where = account.frame or "a position unknown"
    if account.is_old:
        return (
            f"made no progress, last heard of {account.doing}: stuck at {where}, in C code that keeps "
            "Python's global lock"
        )
    return f"made no progress for {account.report.seconds:.0f} s {account.doing}: stuck at {where}"


def _waiting(account: _Account) -> str:
    return f"{account.doing} at {account.frame}" if account.frame else account.doing


def _alike(accounts: Sequence[_Account], said: Callable[[_Account], str]) -> list[tuple[str, _Account]]:
    """Ranks of which the same is to be said, together; hundreds of ranks wait in the same position."""
    groups: dict[str, list[_Account]] = {}
    for account in accounts:
        groups.setdefault(said(account), []).append(account)
    return [(_ranks(group), group[0]) for group in groups.values()]


def _ranks(accounts: Sequence[_Account]) -> str:
    numbers = ", ".join(str(account.rank) for account in accounts)
    return f"rank {numbers}" if len(accounts) == 1 else f"ranks {numbers}"


def _stacks(accounts: Sequence[_Account]) -> str:
    processes = "".join(
        f"rank {account.rank} is process {account.position.pid} on {account.position.host}\n"
        for account in accounts
        if account.position
    )
    stacks = (
        f"\n{ranks} {one.doing}:\n{_all_threads(one)}"
        for ranks, one in _alike(accounts, lambda account: account.doing + _all_threads(account))
    )
    return processes + "".join(stacks)


def _all_threads(account: _Account) -> str:
    if account.report is None:
        return "  no stack\n"
    threads = [f"  thread {name}:\n{shown(stack)}" for name, stack in account.report.threads.items()]
    return shown(account.report.stack) + "".join(threads)
