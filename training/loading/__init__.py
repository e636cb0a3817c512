"""Global batches, each rank's share of them, and randomness by sample.

May import `errors`, `spec`.
"""
