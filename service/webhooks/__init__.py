"""Webhooks: what is sent, how it is signed, and to which addresses.

May import `cipher`, `errors`, `jobs`, `queue`, `settings`, `training.spec`.
"""
