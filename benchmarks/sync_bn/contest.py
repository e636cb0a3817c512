"""A comparison over many inputs and its table: medians, ratios of medians, geometric means of ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median

from benchmarks.progress import progress
from benchmarks.result import Result
from benchmarks.sync_bn.cases import Case

Milliseconds = Mapping[str, Sequence[float]]
"""Values by contestant, one a round."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One input: the group whose geometric mean it enters, and its measurements."""

    shape: str
    group: str
    milliseconds: Milliseconds

    def median(self, contestant: str) -> float:
        return median(self.milliseconds[contestant])

    def ratio(self, ours: str, peer: str) -> float:
        return self.median(ours) / self.median(peer)


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The contestants. beside: shown without a ratio. goals: bounds for the ratio to a peer."""

    title: str
    ours: str
    peers: Sequence[str]
    beside: Sequence[str] = ()
    goals: Mapping[str, float] | None = None

    def hold(
        self,
        cases: Sequence[Case],
        milliseconds_of: Callable[[Case], Milliseconds],
        group_of: Callable[[Case], str] = lambda case: case.format,
    ) -> list[Timed]:
        """Times all inputs and shows progress."""
        timed = []
        with progress(self.title, len(cases)) as shown:
            for case in cases:
                shown.doing(f"{group_of(case)} {case.shape}")
                row = Timed(shape=case.shape, group=group_of(case), milliseconds=milliseconds_of(case))
                timed.append(row)
                shown.done(f"{row.ratio(self.ours, self.peers[0]):.2f} × {self.peers[0]}")
        return timed

    def table(self, timed: Sequence[Timed], notes: Sequence[str]) -> Result:
        columns = [
            "input",
            "group",
            f"{self.ours}, ms",
            *(heading for peer in self.peers for heading in (f"{peer}, ms", "ratio")),
            *(f"{name}, ms" for name in self.beside),
        ]
        means = self._means(timed)
        return Result(
            title=self.title,
            columns=columns,
            rows=[*map(self._row, timed), *(self._mean_row(group, means[group]) for group in means)],
            notes=[*notes, *(self._verdict(peer, timed, means) for peer in self.goals or ())],
            samples={f"{row.shape} {row.group}, ms": _rounded(row.milliseconds) for row in timed},
        )

    def _means(self, timed: Sequence[Timed]) -> dict[str, dict[str, float]]:
        """Returns the geometric means of the ratio to each peer, by group."""
        groups: dict[str, list[Timed]] = {}
        for row in timed:
            groups.setdefault(row.group, []).append(row)
        return {
            group: {peer: geometric_mean(row.ratio(self.ours, peer) for row in rows) for peer in self.peers}
            for group, rows in groups.items()
        }

    def _row(self, timed: Timed) -> Sequence[str]:
        of_peers = ((timed.median(peer), timed.ratio(self.ours, peer)) for peer in self.peers)
        return (
            timed.shape,
            timed.group,
            _shown(timed.median(self.ours)),
            *(cell for value, ratio in of_peers for cell in (_shown(value), f"{ratio:.2f}")),
            *(_shown(timed.median(name)) for name in self.beside),
        )

    def _mean_row(self, group: str, means: Mapping[str, float]) -> Sequence[str]:
        cells = (cell for mean in means.values() for cell in ("", f"{mean:.2f}"))
        return "geometric mean", group, "", *cells, *("" for _ in self.beside)

    def _verdict(self, peer: str, timed: Sequence[Timed], means: Mapping[str, Mapping[str, float]]) -> str:
        assert self.goals is not None
        goal, of_groups = self.goals[peer], [of_peers[peer] for of_peers in means.values()]
        return (
            f"Goal: at most {goal:g} × {peer}. Met by {sum(mean <= goal for mean in of_groups)} of "
            f"{len(of_groups)} geometric means, of which the highest is {max(of_groups):.2f}, and by "
            f"{sum(row.ratio(self.ours, peer) <= goal for row in timed)} of {len(timed)} inputs."
        )


def _shown(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:#.3g}"


def _rounded(milliseconds: Milliseconds) -> Milliseconds:
    return {name: [round(value, 4) for value in values] for name, values in milliseconds.items()}
