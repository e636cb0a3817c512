"""The versions that have to match between the parts of the service."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("syncbn", "ray", "torch", "mlflow")


def own_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages in this environment, without importing them."""
    return {"python": platform.python_version()} | {
        name: found for name in PACKAGES if (found := _version(name)) is not None
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
