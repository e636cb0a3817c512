"""The HTTP API: routes, request bodies, response documents, problem documents, event streams.

May import `backends`, `errors`, `job_logs`, `jobs`, `queue`, `scheduling`, `secrets`, `settings`,
`user_code`, `training.protocol`, `training.spec`.
"""
