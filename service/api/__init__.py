"""The HTTP API: routes, request bodies, response documents, problem documents, event streams.

May import `access`, `backends`, `checkpoints`, `errors`, `job_files`, `job_logs`, `jobs`, `queue`,
`scheduling`, `secrets`, `settings`, `start_from`, `user_code`, `training.checkpoints`, `training.protocol`,
`training.spec`.
"""
