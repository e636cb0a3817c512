"""A user's code: packed, checked and looked up without importing it.

May import `errors`, `training.reserved`, `training.spec`.
"""
