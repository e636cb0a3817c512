"""The HTTP API: routes, request bodies, answers, problem documents, streams of events.

May import `backends`, `errors`, `job_logs`, `jobs`, `queue`, `scheduling`, `settings`, `user_code`,
`training.protocol`, `training.spec`.
"""
