"""Examples of the OpenAPI document, where the routes themselves have none: one request for every route."""

from __future__ import annotations

from typing import Any

_JOB, _SWEEP = "j1k0w1qk530wdg8e15q54", "s1k0w1qk530wdg8e15q54"
_OF_PATHS = {
    "job_id": _JOB,
    "sweep_id": _SWEEP,
    "webhook_id": "w1k0w1qk530wdg8e15q54",
    "key_id": "4w1m0x2k9q7z",
    "which": "best",
    "path": "logs/metrics.csv",
}
_NAMES = {"/v1/secrets/{name}": "HF_TOKEN", "/v1/sweeps/{sweep_id}/report/{name}": "report.md"}
_BODIES: dict[str, Any] = {
    "POST /v1/jobs/{job_id}/resize": {"workers": 2},
    "POST /v1/jobs/{job_id}/retry": {"from_scratch": False},
    "POST /v1/jobs/{job_id}/priority": {"priority": 10},
    "POST /v1/webhooks": {"url": "https://example.org/syncbn", "events": ["succeeded", "failed"]},
    "POST /v1/keys": {"user": "ada", "scope": "submit"},
    "PUT /v1/secrets/{name}": "the value of the secret",
    "PUT /v1/sweeps/{sweep_id}/report/{name}": "# What the sweep has shown\n",
}


def add_examples(document: dict[str, Any]) -> None:
    """Adds an example to each parameter of a path and to each body that is text and has none."""
    for path, routes in document["paths"].items():
        for method, operation in routes.items():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    name = parameter["name"]
                    parameter["example"] = _NAMES[path] if name == "name" else _OF_PATHS[name]
            if (example := _BODIES.get(f"{method.upper()} {path}")) is not None:
                for content in operation["requestBody"]["content"].values():
                    content["example"] = example
