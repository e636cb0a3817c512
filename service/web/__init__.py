"""The console: pages of HTML under /, rendered by the server, that show and steer everything.

May import `access`, `api`, `backends`, `checkpoints`, `cleanup`, `differences`, `doctor`, `errors`,
`escapes`, `job_files`, `job_logs`, `job_points`, `jobs`, `log_files`, `queue`, `scheduling`, `secrets`,
`settings`, `training.hangs`, `training.metric_names`, `training.noise_rule`, `training.protocol`,
`training.run_dir`, `training.spec`, `training.versions`.
"""
