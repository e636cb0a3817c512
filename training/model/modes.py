"""Training and evaluation mode of a model's parts, as its author means them."""

from __future__ import annotations

from torch import nn

LONGEST_LIST = 20


def enter_training(model: nn.Module) -> None:
    """Calls `train()`, as a training loop does, so that a model that overrides it can freeze parts.

    A part in evaluation mode within a model in training mode was frozen by its author, and stays so. A model
    that is itself in evaluation mode, as after loading pretrained weights, is trained as a whole.
    """
    frozen = [part for part in model.modules() if not part.training] if model.training else []
    model.train()
    for part in frozen:
        part.training = False


def in_evaluation(model: nn.Module) -> str:
    """Returns the names and classes of the parts in evaluation mode, outermost only; "" if there are none."""
    outermost: dict[str, nn.Module] = {}
    for name, part in model.named_modules():
        if not part.training and not any(name.startswith(f"{parent}.") for parent in outermost):
            if not name:
                return f"the whole model ({type(part).__name__})"
            outermost[name] = part
    listed = [f"{name} ({type(part).__name__})" for name, part in outermost.items()]
    more = f" and {len(listed) - LONGEST_LIST} more" if len(listed) > LONGEST_LIST else ""
    return ", ".join(listed[:LONGEST_LIST]) + more
