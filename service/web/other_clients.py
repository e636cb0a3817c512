"""What does the same as a route: a command of the command line, and a call of the Python client."""

from __future__ import annotations

from collections.abc import Mapping

OTHERS: Mapping[str, tuple[str, str]] = {
    "POST /v1/jobs": ("syncbn submit spec.yaml", 'client.submit(Path("spec.yaml").read_text())'),
    "GET /v1/jobs": ("syncbn list --state failed", 'list(client.jobs(states=["failed"]))'),
    "POST /v1/jobs/validate": ("syncbn validate spec.yaml", 'client.validate(Path("spec.yaml").read_text())'),
    "GET /v1/jobs/{job_id}": ("syncbn show ID", 'client.job("ID")'),
    "DELETE /v1/jobs/{job_id}": ("syncbn delete ID", 'client.delete("ID")'),
    "GET /v1/jobs/{job_id}/metrics": ("syncbn metrics ID", 'client.metrics("ID")'),
    "POST /v1/jobs/{job_id}/cancel": ("syncbn cancel ID", 'client.cancel("ID")'),
    "POST /v1/jobs/{job_id}/pause": ("syncbn pause ID", 'client.pause("ID")'),
    "POST /v1/jobs/{job_id}/resume": ("syncbn resume ID", 'client.resume("ID")'),
    "POST /v1/jobs/{job_id}/resize": ("syncbn resize ID 2", 'client.resize("ID", 2)'),
    "POST /v1/jobs/{job_id}/retry": ("syncbn retry ID", 'client.retry("ID")'),
    "POST /v1/jobs/{job_id}/priority": ("syncbn priority ID 10", 'client.set_priority("ID", 10)'),
    "GET /v1/jobs/{job_id}/logs": ("syncbn logs ID", 'client.logs("ID")'),
    "GET /v1/jobs/{job_id}/events": ("syncbn events ID", 'client.follow("ID")'),
    "GET /v1/jobs/{job_id}/checkpoints": ("syncbn checkpoints ID", 'client.checkpoints("ID")'),
    "GET /v1/jobs/{job_id}/checkpoints/{which}": (
        "syncbn download ID best",
        'client.download_checkpoint("ID", "best")',
    ),
    "GET /v1/jobs/{job_id}/files": ("syncbn files ID", 'client.files("ID")'),
    "GET /v1/jobs/{job_id}/files/{path}": (
        "syncbn download ID --file logs/metrics.csv",
        'client.download_file("ID", "logs/metrics.csv")',
    ),
    "POST /v1/sweeps": (
        "syncbn sweep spec.yaml --grid optimizer.init_args.lr=0.1,0.01",
        "client.submit_sweep(sweep)",
    ),
    "GET /v1/sweeps": ("syncbn sweeps", "list(client.sweeps())"),
    "POST /v1/sweeps/validate": (
        "syncbn sweep spec.yaml --grid training.seed=0,1 --dry-run",
        "client.validate_sweep(sweep)",
    ),
    "GET /v1/sweeps/{sweep_id}": ("syncbn show ID", 'client.sweep("ID")'),
    "POST /v1/sweeps/{sweep_id}/cancel": ("syncbn cancel ID", 'client.cancel_sweep("ID")'),
    "POST /v1/sweeps/{sweep_id}/pause": ("syncbn pause ID", 'client.pause_sweep("ID")'),
    "POST /v1/sweeps/{sweep_id}/resume": ("syncbn resume ID", 'client.resume_sweep("ID")'),
    "PUT /v1/sweeps/{sweep_id}/report/{name}": (
        "syncbn report ID",
        'client.upload_report("ID", "report.md", "# What it has shown")',
    ),
    "POST /v1/code": (
        "syncbn submit spec.yaml --code DIR",
        'client.upload_code(Path("code.zip").read_bytes())',
    ),
    "GET /v1/secrets": ("syncbn secrets list", "client.secrets()"),
    "PUT /v1/secrets/{name}": (
        "syncbn secrets set HF_TOKEN",
        'client.set_secret("HF_TOKEN", "the value of the secret")',
    ),
    "DELETE /v1/secrets/{name}": ("syncbn secrets delete HF_TOKEN", 'client.delete_secret("HF_TOKEN")'),
    "GET /v1/queue": ("syncbn queue", "list(client.queue())"),
    "GET /v1/cluster": ("syncbn cluster", "client.cluster()"),
    "GET /v1/cleanup": ("syncbn cleanup --dry-run", "list(client.cleanup_plan())"),
    "POST /v1/cleanup": ("syncbn cleanup", "list(client.clean_up())"),
    "POST /v1/webhooks": (
        "syncbn webhooks add https://example.org/syncbn",
        'client.add_webhook("https://example.org/syncbn")',
    ),
    "GET /v1/webhooks": ("syncbn webhooks list", "client.webhooks()"),
    "DELETE /v1/webhooks/{webhook_id}": ("syncbn webhooks remove ID", 'client.remove_webhook("ID")'),
    "POST /v1/webhooks/{webhook_id}/test": ("syncbn webhooks test ID", 'client.test_webhook("ID")'),
    "GET /v1/webhooks/{webhook_id}/deliveries": (
        "syncbn webhooks deliveries ID",
        'list(client.deliveries("ID"))',
    ),
    "GET /v1/keys": ("syncbn keys list", "client.api_keys()"),
    "POST /v1/keys": ("syncbn keys create ada --scope submit", 'client.create_key("ada", "submit")'),
    "POST /v1/keys/{key_id}/revoke": ("syncbn keys revoke ID", 'client.revoke_key("ID")'),
    "GET /v1/audit": ("syncbn audit", "list(client.audit())"),
    "GET /v1/events": ("", "client.events()"),
    "GET /v1/version": ("", "client.version()"),
    "GET /readyz": ("syncbn ready", "client.ready()"),
}
"""By the method and path of the route: (command, call); "" where there is none."""
