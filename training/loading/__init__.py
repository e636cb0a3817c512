"""Global batches, each rank's share of them, and per-sample randomness.

May import `console`, `errors`, `spec`.
"""
