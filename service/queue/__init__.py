"""The durable queue in one database: jobs, sweeps, code, secrets, API keys, the audit log, the lease.

May import `access`, `backends`, `circuit`, `errors`, `jobs`, `training.backoff`, `training.protocol`,
`training.spec`, `training.versions`.
"""
