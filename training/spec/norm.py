"""What becomes of a model's BatchNorm layers: the kinds of normalisation and the options of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from training.spec.errors import located
from training.spec.parts import Part

SYNCHRONIZED = ("sync_batch_norm", "batch_renorm")
_RENORM = ("batch_renorm",)
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "group": SYNCHRONIZED,
    "observe_every": SYNCHRONIZED,
    "samples": ("ghost_batch_norm",),
    "groups": ("group_norm", "evonorm_s0"),
    "weight_standardization": ("group_norm",),
    "r_max": _RENORM,
    "d_max": _RENORM,
    "plain_steps": _RENORM,
    "r_steps": _RENORM,
    "d_steps": _RENORM,
}
"""The kinds that each option is for."""


class Norm(Part):
    """The normalisation that replaces the model's BatchNorm layers."""

    kind: Literal[
        "sync_batch_norm",
        "batch_norm",
        "batch_renorm",
        "ghost_batch_norm",
        "group_norm",
        "layer_norm",
        "instance_norm",
        "filter_response_norm",
        "evonorm_s0",
        "none",
        "keep",
    ] = Field(
        default="sync_batch_norm",
        description="sync_batch_norm: statistics over the group; batch_norm: statistics of each worker; "
        "batch_renorm: sync_batch_norm corrected towards the running statistics (Ioffe 2017); "
        "ghost_batch_norm: statistics of virtual batches within each worker's share (Hoffer et al. 2017); "
        "group_norm (Wu & He 2018), layer_norm (over all values of a sample), instance_norm (Ulyanov et al. "
        "2016): statistics of each sample; filter_response_norm (Singh & Krishnan 2020), evonorm_s0 (Liu et "
        "al. 2020): of each sample, and an activation of their own in place of an nn.ReLU that follows "
        "directly in an nn.Sequential; none: only the scale and shift of each channel; keep: the model's own "
        "layers. Results of batch_norm and ghost_batch_norm depend on the number of workers",
    )
    group: Literal["world", "node"] | Annotated[int, Field(ge=1)] = Field(
        default="world",
        description="For sync_batch_norm and batch_renorm: the workers that share statistics: all, those of "
        "a node, or k consecutive ranks",
    )
    observe_every: int | None = Field(
        default=None,
        ge=1,
        description="For sync_batch_norm and batch_renorm: every this many optimizer steps, log for each "
        "layer how far the statistics of worker 0 and the running statistics are from those of the group; "
        "null: never",
    )
    samples: int = Field(
        default=128,
        ge=2,
        description="For ghost_batch_norm: samples of a virtual batch (default: Hoffer et al. 2017). A "
        "share is cut in order; its last virtual batch has the rest, and a rest of one sample joins "
        "the one before",
    )
    groups: int | None = Field(
        default=None,
        ge=1,
        description="For group_norm and evonorm_s0: groups of channels, a divisor of every layer's channels; "
        "null: 32 (Wu & He 2018), or the next smaller power of 2 that leaves an even number of channels each",
    )
    weight_standardization: bool = Field(
        default=False,
        description="For group_norm: give the weights of each output channel of the convolutions before the "
        "replaced layers mean 0 and variance 1 (Qiao et al. 2019)",
    )
    r_max: float = Field(
        default=3.0,
        ge=1,
        description="For batch_renorm: limit of the scale r, in [1/r_max, r_max] (default, as of the four "
        "keys below: Ioffe 2017, section 4)",
    )
    d_max: float = Field(default=5.0, ge=0, description="For batch_renorm: limit of the shift d, in ±d_max")
    plain_steps: int = Field(
        default=5000,
        ge=0,
        description="For batch_renorm: optimizer steps with r = 1 and d = 0, which is sync_batch_norm",
    )
    r_steps: int = Field(
        default=40_000,
        ge=0,
        description="For batch_renorm: the step at which the limit of r, linear from plain_steps, is r_max",
    )
    d_steps: int = Field(
        default=25_000,
        ge=0,
        description="For batch_renorm: the step at which the limit of d, linear from plain_steps, is d_max",
    )

    @property
    def is_synchronized(self) -> bool:
        """Whether the statistics are those of several workers."""
        return self.kind in SYNCHRONIZED

    @property
    def layers(self) -> tuple[object, ...]:
        """What the weights of a model's checkpoint depend on: equal where they fit each other."""
        if self.kind in {"keep", "batch_norm", "sync_batch_norm", "batch_renorm", "ghost_batch_norm"}:
            return ("BatchNorm",)
        return (self.kind, self.weight_standardization)

    @property
    def depends_on_workers(self) -> bool:
        """Whether results may depend on the number of workers."""
        return self.kind in {"batch_norm", "ghost_batch_norm"}

    @model_validator(mode="after")
    def _only_options_of_the_kind(self) -> Self:
        for key, kinds in OPTIONS.items():
            if key not in self.model_fields_set or self.kind in kinds:
                continue
            if getattr(self, key) != type(self).model_fields[key].default:
                raise located(
                    f"norm.{key}",
                    f"is for {' and '.join(kinds)}, and norm.kind is {self.kind}; omit this key",
                )
        for key in ("r_steps", "d_steps"):
            if getattr(self, key) < self.plain_steps:
                given = getattr(self, key)
                raise located(
                    f"norm.{key}",
                    f"{given} is less than norm.plain_steps, {self.plain_steps}; give that at least",
                )
        return self

    @model_serializer(mode="wrap")
    def _that_apply(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {
            key: value for key, value in dump(self).items() if self.kind in OPTIONS.get(key, (self.kind,))
        }
