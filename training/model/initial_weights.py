"""Weights of another run, or of a file, in a new model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.parameter import is_lazy

from training.errors import BuildError
from training.model.supervised import Supervised

KEY = "start_from"
_SHOWN = 5


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the state_dict in a checkpoint of Lightning, in a file of torch, or in safetensors.

    Of an nn.Module that a job has trained it has the module's own names. Raises BuildError.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise BuildError(
            KEY,
            f"{path} cannot be read as weights alone: it is damaged, or holds Python objects; name a "
            "checkpoint, or save model.state_dict() in a file",
        ) from None
    except Exception as error:  # of zipfile, of safetensors: whatever the file is
        raise BuildError(KEY, f"{path} cannot be read as weights: {type(error).__name__}") from None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise BuildError(KEY, f"{path} holds no state_dict; save model.state_dict() in it")
    return dict(state)


def start_with(
    module: LightningModule, state: Mapping[str, Tensor], *, strict: bool, say: Callable[[str], None]
) -> None:
    """Loads weights into a module, before training or, if `configure_model` makes its layers, after that.

    strict: names must be the same; otherwise `say` is called with those that are left out. Raises BuildError
    for other names or shapes, then or when the layers are made.
    """
    if type(module).configure_model is LightningModule.configure_model:
        _load(module, state, strict=strict, say=say)
        return
    make = module.configure_model

    def configure_model() -> None:
        make()
        _load(module, state, strict=strict, say=say)

    module.configure_model = configure_model  # type: ignore[method-assign]


def _load(
    module: LightningModule, state: Mapping[str, Tensor], *, strict: bool, say: Callable[[str], None]
) -> None:
    model = module.model if isinstance(module, Supervised) else module
    own = model.state_dict()
    common = own.keys() & state.keys()
    problems = []
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    different = [f"the checkpoint lacks {_listed(missing)}"] if missing else []
    different += [f"the model lacks {_listed(unexpected)}"] if unexpected else []
    if strict or not common:
        problems += different
    if shapes := [text for name in own if name in common and (text := _differs(name, own, state))]:
        problems.append(_listed(shapes))
    if problems:
        remedy = "start from a checkpoint of the same model"
        if strict and common and not shapes:
            remedy += ", or leave these out with start_from.strict=false"
        raise BuildError(
            KEY, f"its weights do not fit {type(model).__name__}: {'; '.join(problems)}; {remedy}"
        )
    if different:
        say(f"start_from.strict=false: {'; '.join(different)}; these are left out")
    model.load_state_dict({name: state[name] for name in own if name in common}, strict=False)


def _differs(name: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    here, there = own[name], state[name]
    if not (isinstance(here, Tensor) and isinstance(there, Tensor)) or is_lazy(here) or is_lazy(there):
        return ""
    if here.shape == there.shape:
        return ""
    return f"{name} has shape {tuple(there.shape)} in the checkpoint and {tuple(here.shape)} in the model"


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN] + ([f"and {more} more"] if more > 0 else []))
