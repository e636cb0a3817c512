"""The console: pages of HTML under /, rendered by the server, that show and steer everything.

May import `access`, `api`, `backends`, `errors`, `job_logs`, `job_points`, `jobs`, `queue`, `scheduling`,
`training.noise_rule`, `training.protocol`, `training.spec`.
"""
