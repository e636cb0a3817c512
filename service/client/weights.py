"""The weights of a downloaded checkpoint in a file of their own. Needs torch, which is imported on use."""

from __future__ import annotations

import uuid
from pathlib import Path

from service.client.errors import ClientError


def write_weights(checkpoint: Path, output: Path, *, safetensors: bool = False) -> Path:
    """Writes the state_dict of a checkpoint to a file and returns its path.

    output: the path of the file, or a folder, in which it has the checkpoint's name with the ending .pt or
    .safetensors. It appears when it is complete. Load it with `torch.load(path, weights_only=True)` or
    `safetensors.torch.load_file(path)`. In safetensors, tensors that share memory are written once each.
    Raises ClientError for a state_dict with other values than tensors, which safetensors cannot hold.
    """
    import torch

    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    suffix = ".safetensors" if safetensors else ".pt"
    target = output / checkpoint.with_suffix(suffix).name if output.is_dir() else output
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        if safetensors:
            from safetensors.torch import save_file

            if others := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
                raise ClientError(
                    f"safetensors holds tensors alone, and the state_dict has {', '.join(others[:5])}; "
                    "download the weights instead (--format weights)"
                )
            # The format has no tensors that share memory, and only contiguous ones.
            save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, part)
        else:
            torch.save(state, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target
