"""What the sections of a job specification are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

ClassPath = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$",
        max_length=500,
        description="Dotted path of a class or of a function that returns an instance: package.module.Class; "
        "of a class of the uploaded code the name alone",
    ),
]


class Part(BaseModel):
    """A section: immutable, without unknown keys and conversions of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ClassSpec(Part):
    """A class and its constructor's keyword arguments (LightningCLI's convention)."""

    class_path: ClassPath
    init_args: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments; a class_path in one makes it an instance"
    )

    def __hash__(self) -> int:
        """pydantic copies a default value deeply, for each model that it validates, if that has no hash."""
        return hash(self.class_path)
