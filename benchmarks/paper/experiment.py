"""An experiment: its recipes, what the paper says, and how runs become figures, a table and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.paper.points import Plan, Point, Quick, plan_of
from benchmarks.paper.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = Sequence[Run]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of the paper, whether it holds in these runs, and the figures that say so.

    statement: a sentence without numbers of ours. evidence: a sentence with the numbers.
    """

    statement: str
    holds: bool
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure. draw: into an empty figure of matplotlib. size: in inches."""

    caption: str
    draw: Callable[[Runs, Figure], None]
    size: tuple[float, float] = (8.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """recipes: names of files, without suffix. metrics: how the names begin of the metrics that are read.

    paper: what the paper says, in Markdown. table: the columns and the rows. notes: what a reader has to know
    to judge. quick: changes of each recipe for a run in less than a minute.
    """

    name: str
    title: str
    paper: str
    recipes: Sequence[str]
    metrics: Sequence[str]
    quick: Mapping[str, Quick]
    claims: Callable[[Runs], Sequence[Claim]]
    table: Callable[[Runs], tuple[Sequence[str], Sequence[Sequence[str]]]]
    drawings: Mapping[str, Drawing] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def plans(self, *, quick: bool, settings: Sequence[str] = ()) -> list[Plan]:
        """Returns the sweep of each recipe. settings: assignments as of `--set`."""
        return [plan_of(recipe, self.quick[recipe] if quick else None, settings) for recipe in self.recipes]

    def points(self, *, quick: bool, settings: Sequence[str] = ()) -> list[Point]:
        """Returns the points of all recipes."""
        return [point for plan in self.plans(quick=quick, settings=settings) for point in plan.points()]
