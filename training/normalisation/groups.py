"""Group normalisation, of which layer and instance normalisation are the extremes (Wu & He 2018)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.errors import BuildError
from training.normalisation.own_layer import check_values


class ByChannel(nn.GroupNorm):
    """nn.GroupNorm with a group for each channel, which is instance normalisation (Ulyanov et al. 2016).

    Any number of dimensions; nn.InstanceNorm1d would take (N, C) for one sample of N channels. Raises
    BuildError for one position a channel, which nn.GroupNorm makes 0.
    """

    kind, name = "instance_norm", ""

    def forward(self, input: Tensor) -> Tensor:
        """Returns the normalised input, with its shape."""
        check_values(input, 1, self.kind, self.name)
        return super().forward(input)

    def exported(self) -> nn.GroupNorm:
        """Returns the layer as torch's own, with the same parameters."""
        return group_norm_of(self, nn.GroupNorm, self.num_groups)


def group_norm(layer: _BatchNorm, name: str, groups: int, kind: str) -> nn.GroupNorm:
    """Returns the GroupNorm in place of `layer`, with its parameters."""
    if groups < layer.num_features:
        return group_norm_of(layer, nn.GroupNorm, groups)
    new = group_norm_of(layer, ByChannel, groups)
    assert isinstance(new, ByChannel)
    new.kind, new.name = kind, name
    return new


def group_norm_of(layer: _BatchNorm | nn.GroupNorm, kind: type[nn.GroupNorm], groups: int) -> nn.GroupNorm:
    """Returns a new layer of that class and number of groups, with the parameters of another."""
    channels = layer.num_features if isinstance(layer, _BatchNorm) else layer.num_channels
    new = kind(groups, channels, eps=layer.eps, affine=False)
    new.affine = layer.affine
    new.weight, new.bias = layer.weight, layer.bias
    return new.train(layer.training)


def group_count(layer: _BatchNorm, name: str, wanted: int | None) -> int:
    """Returns the wanted number of groups.

    None: 32 (Wu & He 2018), or the next smaller power of 2 that leaves an even number of channels per group.

    Not one channel per group: after a linear layer it has a single value per sample, and so no variance.
    Raises BuildError if the wanted number does not divide the channels.
    """
    channels = layer.num_features
    if wanted is None:
        return next((groups for groups in (32, 16, 8, 4, 2) if channels % (2 * groups) == 0), 1)
    if channels % wanted:
        divisors = ", ".join(str(k) for k in range(1, channels + 1) if channels % k == 0)
        where = f"layer {name!r}" if name else "the model"
        raise BuildError(
            "norm.groups",
            f"{wanted} groups do not divide the {channels} channels of {where}; choose one of {divisors}, or "
            "omit this key",
        )
    return wanted
