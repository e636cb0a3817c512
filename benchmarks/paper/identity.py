"""Section 3 and Algorithm 2: BatchNorm can represent the identity, and can be folded away."""

from __future__ import annotations

from statistics import median

from benchmarks.paper.drawing import percent
from benchmarks.paper.experiment import Claim, Experiment, Runs
from benchmarks.paper.points import Quick
from benchmarks.paper.runs import Run, spread, value_of

ROUNDING = 1e-10
"""The largest relative difference in float64 that counts as equal."""


def worst_identity(run: Run) -> float:
    """The largest relative difference between the input and the output of a layer."""
    return max((run.last(name) for name in run.curves if name.startswith("identity/")), default=float("nan"))


def difference(run: Run) -> float:
    return run.last("folded/difference")


def table(runs: Runs) -> tuple[list[str], list[list[str]]]:
    rows = []
    for activation in sorted({value_of(run, "activation") for run in runs}):
        of = [run for run in runs if value_of(run, "activation") == activation]
        rows.append(
            [
                str(activation),
                f"{median(run.last('folded/layers') for run in of):.0f}",
                f"{median(run.last('folded/remaining') for run in of):.0f}",
                spread(of, worst_identity).text("{:.1e}".format),
                spread(of, difference).text("{:.1e}".format),
                spread(of, lambda run: run.last("test_accuracy")).text(percent),
            ]
        )
    return [
        "activation",
        "layers folded",
        "layers left",
        "identity: largest difference",
        "folded: largest difference",
        "test accuracy",
    ], rows


def claims(runs: Runs) -> list[Claim]:
    identity, folded = (spread(runs, figure) for figure in (worst_identity, difference))
    left = max((run.last("folded/remaining") for run in runs), default=float("nan"))
    return [
        Claim(
            statement="With γ = √Var and β = E, BN returns its input.",
            holds=identity.most <= ROUNDING,
            evidence=f"Of all layers of all {len(identity.values)} trained networks the largest difference, "
            f"relative to the largest input, was {identity.most:.1e} in float64.",
        ),
        Claim(
            statement="In inference BN is a linear map: a network without it gives the same outputs.",
            holds=folded.most <= ROUNDING and left == 0,
            evidence=f"With every BN folded into the convolution before it ({left:.0f} left), the largest "
            f"difference of an output was {folded.most:.1e}.",
        ),
    ]


IDENTITY = Experiment(
    name="identity",
    title="BatchNorm as the identity, and folded away",
    paper="Ioffe & Szegedy (2015), section 3: “by setting γ = √Var[x] and β = E[x], we could recover the "
    "original activations, if that were the optimal thing to do”; and Algorithm 2, step 11: in inference "
    "BN is “simply a linear transform applied to each activation”, which “could further be composed with "
    "the scaling by γ and shift by β, to yield a single linear transform”.",
    recipes=("identity",),
    metrics=("identity/", "folded/", "test_accuracy"),
    quick={
        "identity": Quick(
            settings=("training.max_steps=40", "data.init_args.limit=1500"),
            grid={"model.init_args.activation": ["relu"]},
        )
    },
    claims=claims,
    table=table,
    notes=(
        "`training.probes.Folding` checks it at the end of each training, in float64, on a copy of the "
        "trained network and 500 test images. `torch.fx.experimental.optimization.fuse` folds the layers.",
        f"Differences up to {ROUNDING:.0e} count as rounding.",
    ),
)
