"""`advise`: which normalisation a spec's model needs, measured in a few steps on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.options import AsJson, Assignments, CodeDirectory, Configs, Overrides, SpecFile
from service.cli.scripts import code_of
from service.cli.session import reporting
from service.cli.verify import measuring


def advise(
    spec: SpecFile = None,
    configs: Configs = None,
    overrides: Overrides = None,
    assignments: Assignments = None,
    code: CodeDirectory = None,
    workers: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Number of workers; by default the spec's, and at least 2."),
    ] = None,
    steps: Annotated[int, typer.Option(min=6, metavar="N", help="Optimizer steps of each run.")] = 30,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the result and its figure.")] = Path(
        "advice"
    ),
    as_json: AsJson = False,
) -> None:
    """Say which normalisation a spec's model needs, with the figures behind it.

    Trains a few steps on this machine: how noisy would the statistics of one worker's samples be, layer by
    layer, what does synchronizing them cost, and what does a normalisation without a batch cost.
    """
    from service.cli import output as screen
    from service.cli.specs import read_spec

    with reporting():
        parsed = read_spec(spec, assignments, configs, overrides, code_of(spec, code))
        from training import advise as advising

        number = workers or max(parsed.resources.max_workers, 2)
        with measuring() as running:
            found = advising.advise(
                parsed, workers=number, steps=steps, code=code, output=output, running=running
            )
    if as_json:
        screen.print_json(advising.as_json(found))
        return
    typer.echo()
    for sentence in found.words():
        screen.console().print(sentence, markup=False)
    if found.layers:
        screen.console().print(f"figure: {output / advising.RESULTS[1]}", markup=False)
