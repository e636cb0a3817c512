"""The durable queue: jobs, uploaded code and the scheduler's lease, in one database.

May import `backends`, `errors`, `jobs`, `training.protocol`, `training.spec`.
"""
