"""Webhooks: what is sent, how it is signed, and when it is sent again.

May import `cipher`, `errors`, `jobs`, `public_addresses`, `queue`, `settings`, `training.protocol`.
"""
