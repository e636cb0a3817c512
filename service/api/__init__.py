"""The HTTP API: routes, request bodies, response documents, problem documents, event streams.

May import `backends`, `checkpoints`, `errors`, `job_files`, `job_logs`, `jobs`, `logs`, `metrics`, `queue`,
`scheduling`, `secrets`, `settings`, `start_from`, `user_code`, `training.checkpoints`, `training.protocol`,
`training.spec`, `training.versions`.
"""
