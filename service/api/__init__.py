"""The HTTP API: routes, request bodies, response documents, problem documents, event streams.

May import `access`, `backends`, `checkpoints`, `cleanup`, `errors`, `job_files`, `job_logs`,
`job_points`, `jobs`, `logs`, `metrics`, `public_addresses`, `queue`, `readiness`, `scheduling`, `secrets`,
`settings`, `start_from`, `user_code`, `webhooks`, `training.checkpoints`, `training.metric_names`,
`training.spec`, `training.versions`.
"""
