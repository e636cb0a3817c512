"""What the service asks of a cluster and of a tracking server, and who does it: Ray and MLflow, or memory.

May import `errors`, `jobs`, `log_files`, `training.host`, `training.protocol`.
"""
