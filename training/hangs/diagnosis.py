"""The diagnosis of a hang from the files that the ranks have written, made after the ranks have ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.hangs.rank_files import HangReport, Position, RankFiles
from training.hangs.stack_traces import Frame, Stack, formatted, innermost, waits_for_ranks


@dataclass(frozen=True, kw_only=True)
class Hang:
    """The diagnosis of a hang.

    rank: the one that the others wait for; None if there is no single one. step: the optimizer step of that
    rank. message: one line that says what happened, a blank line, and the stacks of all ranks.
    """

    rank: int | None
    step: int
    message: str


@dataclass(frozen=True, kw_only=True)
class _Account:
    """What is known about a rank: its report, or only its last position, or nothing."""

    rank: int
    position: Position | None = None
    report: HangReport | None = None

    @property
    def is_silent(self) -> bool:
        return self.report is None and not (self.position and self.position.ended)

    @property
    def is_outdated(self) -> bool:
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
    """Returns the diagnosis from the files in `folder`; None if no rank has reported a hang."""
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
    """Returns the step of the hang: the blamed ranks' own or, if that may be outdated, the latest of all."""
    is_outdated = any(account.is_outdated for account in blamed)
    return max(account.step for account in (accounts if is_outdated else blamed))


def _blamed(accounts: Sequence[_Account]) -> Sequence[_Account]:
    """Returns the ranks that the others wait for: each rule that selects any rank narrows the candidates."""
    candidates = accounts
    for rule in (_silent_ones, _with_fewest_collectives, _not_waiting, _with_fewest_steps):
        candidates = rule(candidates) or candidates
    return candidates


def _silent_ones(accounts: Sequence[_Account]) -> Sequence[_Account]:
    return [account for account in accounts if account.is_silent]


def _with_fewest_collectives(accounts: Sequence[_Account]) -> Sequence[_Account]:
    """A waiting rank has entered a collective that the rank it waits for has not entered."""
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
        parts = [f"{ranks} waited {_waiting(one)}" for ranks, one in _grouped(blamed, _waiting)]
        why = (
            "they wait in different collectives, so one of them has skipped some"
            if len(parts) > 1
            else "they wait in the same collective: the network between them failed, or they called it with "
            "tensors of different shapes"
        )
        return f"no rank made progress for {seconds:.0f} s: {'; '.join(parts)}; {why}"
    parts = [f"{ranks} {_stuck(one)}" for ranks, one in _grouped(blamed, _stuck)]
    whom = "it" if len(blamed) == 1 else "them"

    def whereabouts(account: _Account) -> str:
        return f"{f'waited for {whom}' if _is_ahead(account, blamed) else 'was'} {_waiting(account)}"

    return "; ".join(parts + [f"{ranks} {whereabouts(one)}" for ranks, one in _grouped(others, whereabouts)])


def _is_ahead(account: _Account, blamed: Sequence[_Account]) -> bool:
    """Returns whether a rank waits for `blamed`, by its stack or its count of collectives.

    The stack alone is not enough: on a GPU, a rank blocks where it reads a value after the collective.
    """
    return account.waits or account not in (_with_fewest_collectives([account, *blamed]) or [account])


def _stuck(account: _Account) -> str:
    if account.is_silent:
        return (
            f"did not answer, last heard of {account.doing}: its process is stopped, or its machine is gone"
        )
    if account.report is None:
        return f"had left the training {account.doing}"
    where = account.frame or "an unknown position"
    if account.is_outdated:
        return (
            f"made no progress, last heard of {account.doing}: stuck at {where}, in C code that holds "
            "Python's global lock"
        )
    return f"made no progress for {account.report.seconds:.0f} s {account.doing}: stuck at {where}"


def _waiting(account: _Account) -> str:
    return f"{account.doing} at {account.frame}" if account.frame else account.doing


def _grouped(accounts: Sequence[_Account], text: Callable[[_Account], str]) -> list[tuple[str, _Account]]:
    """Groups ranks by their text: hundreds of ranks may wait at the same position.

    Returns each group's ranks as text, and one of its accounts.
    """
    groups: dict[str, list[_Account]] = {}
    for account in accounts:
        groups.setdefault(text(account), []).append(account)
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
        for ranks, one in _grouped(accounts, lambda account: account.doing + _all_threads(account))
    )
    return processes + "".join(stacks)


def _all_threads(account: _Account) -> str:
    if account.report is None:
        return "  no stack\n"
    threads = [f"  thread {name}:\n{formatted(stack)}" for name, stack in account.report.threads.items()]
    return formatted(account.report.stack) + "".join(threads)
