"""The page of an experiment, written from its runs: every number on it comes from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.paper.experiment import Claim, Experiment, Runs
from benchmarks.paper.points import RECIPES
from benchmarks.paper.runs import COMMAND, MACHINE

ROOT = Path(__file__).parents[2]


def write(experiment: Experiment, runs: Runs, page: Path, images: Path) -> list[Path]:
    """Writes the page and its figures, `NAME-FIGURE.png` in `images`; returns the files."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for folder in (page.parent, images):
        folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, drawing in experiment.drawings.items():
        figure = Figure(figsize=drawing.size, layout="constrained")
        FigureCanvasAgg(figure)
        drawing.draw(runs, figure)
        files.append(images / f"{experiment.name}-{name}.png")
        figure.savefig(files[-1], dpi=110, metadata={"Software": None})
    page.write_text(text(experiment, runs, images=images, page=page), encoding="utf-8")
    return [page, *files]


def text(experiment: Experiment, runs: Runs, *, page: Path, images: Path) -> str:
    """Returns the page in Markdown. page, images: where it and its figures lie, for the links."""
    return "\n\n".join(_sections(experiment, runs, _relative(images, page.parent))) + "\n"


def _sections(experiment: Experiment, runs: Runs, images: str) -> Iterator[str]:
    yield f"# {experiment.title}"
    yield experiment.paper
    for name, drawing in experiment.drawings.items():
        yield f"![{drawing.caption}]({images}/{experiment.name}-{name}.png)"
        yield drawing.caption
    yield "## What was seen"
    yield "\n".join(map(_line, experiment.claims(runs)))
    columns, rows = experiment.table(runs)
    yield "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows))
    yield "## How"
    yield "\n".join(f"- {line}" for line in _facts(experiment, runs))


def _line(claim: Claim) -> str:
    verdict = "Holds" if claim.holds else "Does not hold here"
    return f"- **{verdict}**: {claim.statement} {claim.evidence}"


def _facts(experiment: Experiment, runs: Runs) -> Iterator[str]:
    yield from experiment.notes
    recipes = ", ".join(f"`{_relative(RECIPES / f'{recipe}.yaml', ROOT)}`" for recipe in experiment.recipes)
    seeds = sorted({run.seed for run in runs})
    yield (
        f"Recipes: {recipes}. Each point is a job on {_workers(runs)}, in {len(seeds)} "
        f"{'seeds' if len(seeds) > 1 else 'seed'}; figures are medians over the seeds, with their range."
    )
    seconds = [run.seconds for run in runs]
    yield (
        f"Number of jobs: {len(runs)}; each took {min(seconds):.0f} to {max(seconds):.0f} s, all together "
        f"{sum(seconds) / 60:.1f} minutes."
    )
    for name, tag in (("Command", COMMAND), ("Machine", MACHINE)):
        said = sorted({run.tags[tag] for run in runs if tag in run.tags})
        if said:
            yield f"{name}: {'; '.join(f'`{each}`' if tag == COMMAND else each for each in said)}."


def _workers(runs: Runs) -> str:
    found = sorted({run.workers for run in runs})
    number = ", ".join(map(str, found[:-1])) + " or " * (len(found) > 1) + str(found[-1])
    return f"{number} worker{'s' * (found != [1])}"


def _relative(path: Path, start: Path) -> str:
    import os.path

    return Path(os.path.relpath(path, start)).as_posix()
