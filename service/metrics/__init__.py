"""What Prometheus reads: figures of the queue, the scheduler, the machines and this API process.

Several API processes show the same figures of the queue, which come from the database, and each its own of
requests.

May import `backends`, `jobs`, `log_files`, `queue`, `readiness`, `settings`.
"""
