"""Finds ranks that make no step, and says where they stand.

May import `protocol`.
"""
