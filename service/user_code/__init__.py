"""User code: packs it, checks uploads, and resolves class paths without importing anything.

May import `errors`, `training.protocol`, `training.reserved`, `training.spec`.
"""
