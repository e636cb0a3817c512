"""Where metrics go: files, and MLflow by way of a spool.

May import `errors`, `protocol`.
"""
