"""The dispatcher: takes jobs from the queue to their end, in the scheduler's process.

May import `backends`, `checkpoints`, `cleanup`, `errors`, `foreground`, `identity`, `job_logs`, `jobs`,
`log_files`, `logs`, `queue`, `scheduling`, `secrets`, `settings`, `training.backoff`, `training.protocol`,
`training.spec`, `training.tracking`, `webhooks`.
"""
