"""Takes jobs from the queue to their end, in a process of its own.

May import `backends`, `errors`, `foreground`, `identity`, `job_logs`, `jobs`, `log_files`, `queue`,
`scheduling`, `settings`, `training.protocol`.
"""
