"""The job specification, the one thing a user writes: its model, its text, and what is said of a wrong one.

May import nothing else of this project. Of libraries it imports pydantic and yaml alone: the API and the
command line read specs without torch.
"""

from training.spec.errors import MAX_PROBLEMS, Problem, SpecError
from training.spec.model import (
    ClassSpec,
    Norm,
    Optimizer,
    Resources,
    Spec,
    flat,
    load_yaml,
    override,
    parse_spec,
    shares,
)

__all__ = [
    "MAX_PROBLEMS",
    "ClassSpec",
    "Norm",
    "Optimizer",
    "Problem",
    "Resources",
    "Spec",
    "SpecError",
    "flat",
    "load_yaml",
    "override",
    "parse_spec",
    "shares",
]
