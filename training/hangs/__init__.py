"""Detects ranks that make no progress, and reports where they are stuck.

May import `internals`, `protocol`, `run_dir`.
"""
