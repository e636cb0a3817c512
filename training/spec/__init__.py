"""The job specification: its pydantic model, its YAML and JSON text, its error messages, and sweeps.

May import nothing else of this project. It imports no library but pydantic and yaml, because the API and the
command line read specs without torch.
"""

from training.spec.environment import Environment
from training.spec.errors import MAX_PROBLEMS, Problem, SpecError
from training.spec.model import (
    Optimizer,
    Spec,
    flat,
    parse_spec,
    read_spec,
    shares,
)
from training.spec.norm import Norm
from training.spec.parts import ClassSpec
from training.spec.resources import Resources, shown_memory
from training.spec.script import SCRIPT_NOTE, Script
from training.spec.start_from import StartFrom
from training.spec.text import load_yaml, override
from training.spec.time_limit import TimeLimit, seconds_of, shown
from training.spec.trainer import ARGUMENTS, Component, TrainerOptions

__all__ = [
    "ARGUMENTS",
    "MAX_PROBLEMS",
    "SCRIPT_NOTE",
    "ClassSpec",
    "Component",
    "Environment",
    "Norm",
    "Optimizer",
    "Problem",
    "Resources",
    "Script",
    "Spec",
    "SpecError",
    "StartFrom",
    "TimeLimit",
    "TrainerOptions",
    "flat",
    "load_yaml",
    "override",
    "parse_spec",
    "read_spec",
    "seconds_of",
    "shares",
    "shown",
    "shown_memory",
]
