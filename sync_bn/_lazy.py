"""Lazy layers: the class of a converted lazy layer until its first batch."""

from functools import cache
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase
from torch.nn.parameter import UninitializedBuffer, is_lazy


@cache
def lazy_class(target: Any) -> Any:
    """Returns the lazy subclass of `target`, which learns its number of features from the first batch."""
    return type(f"Lazy{target.__name__}", (_Lazy, target), {"cls_to_become": target})


def known_features(module: _BatchNorm | _LazyNormBase) -> int | None:
    """Returns the number of features from the size of a buffer or parameter; None if none has a size."""
    known = (t for t in (module.running_mean, module.weight) if t is not None and not is_lazy(t))
    return next((len(tensor) for tensor in known), None)


class _Lazy(_LazyNormBase):
    """Mixin: the layer learns its number of features from the first batch, then becomes `cls_to_become`.

    torch looks up `forward` before the hook that changes the class, so this class normalises the first batch
    and must already synchronize.
    """

    def initialize_parameters(self, input: Tensor, *_: Any, **__: Any) -> None:
        if input.dim() < 2:
            raise ValueError(
                f"{self._layer_name} got an input of shape {tuple(input.shape)}; "
                "expected (N, C, ...): samples, channels, any further dimensions."
            )
        super().initialize_parameters(input)
        # torch sets it only when it initialises a tensor: not without affine and statistics, and not after
        # load_state_dict.
        self.num_features = known_features(self) or input.shape[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # An uninitialized buffer cannot be deep-copied, unlike an uninitialized parameter.
        for buffer in self._buffers.values():
            if buffer is not None and is_lazy(buffer):
                new_buffer: Any = UninitializedBuffer  # torch does not declare its signature
                memo[id(buffer)] = new_buffer(device=buffer.device, dtype=buffer.dtype)
        return super().__deepcopy__(memo)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # pickle cannot find the class by name, since it is created at run time.
        return _new_lazy, (self.cls_to_become,), self.__getstate__()  # type: ignore[no-untyped-call]


def _new_lazy(target: Any) -> _BatchNorm:
    layer: _BatchNorm = lazy_class(target).__new__(lazy_class(target))
    return layer
