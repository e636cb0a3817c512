"""Lazy layers: the class that a layer has between its conversion and its first batch."""

from functools import cache
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase
from torch.nn.parameter import UninitializedBuffer, is_lazy


@cache
def lazy_class(target: Any) -> Any:
    """A `target` that does not know its number of features yet."""
    return type(f"Lazy{target.__name__}", (_Lazy, target), {"cls_to_become": target})


def known_features(module: _BatchNorm | _LazyNormBase) -> int | None:
    """The number that a parameter or buffer tells; None if there is none that has a size."""
    known = (t for t in (module.running_mean, module.weight) if t is not None and not is_lazy(t))
    return next((len(tensor) for tensor in known), None)


class _Lazy(_LazyNormBase):
    """Mixed into a target: it learns its number of features from the first batch, then is the target alone.

    torch looks up `forward` before the hook that changes the class, so the first batch is normalised by the
    class that the layer has until then: already that must synchronize.
    """

    def initialize_parameters(self, input: Tensor, *_: Any, **__: Any) -> None:
        if input.dim() < 2:
            raise ValueError(
                f"{self._layer_name} got an input of shape {tuple(input.shape)}; "
                "expected (N, C, ...): samples, channels, any further dimensions."
            )
        super().initialize_parameters(input)
        # torch sets it only if there was a tensor to make; there is none without affine and statistics, nor
        # after load_state_dict.
        self.num_features = known_features(self) or input.shape[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # An uninitialized buffer refuses to be copied, unlike an uninitialized parameter.
        for buffer in self._buffers.values():
            if buffer is not None and is_lazy(buffer):
                new_buffer: Any = UninitializedBuffer  # whose signature torch does not declare
                memo[id(buffer)] = new_buffer(device=buffer.device, dtype=buffer.dtype)
        return super().__deepcopy__(memo)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class has no name to be found by.
        return _new_lazy, (self.cls_to_become,), self.__getstate__()  # type: ignore[no-untyped-call]


def _new_lazy(target: Any) -> _BatchNorm:
    layer: _BatchNorm = lazy_class(target).__new__(lazy_class(target))
    return layer
