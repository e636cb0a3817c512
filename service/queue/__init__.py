"""The durable queue: jobs, sweeps, uploaded code, secrets and the scheduler's lease, in one database.

May import `backends`, `errors`, `jobs`, `training.backoff`, `training.protocol`, `training.spec`,
`training.versions`.
"""
