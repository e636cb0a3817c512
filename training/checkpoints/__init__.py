"""Checkpoints of a run, in a folder or in S3: each is there as a whole or not at all.

May import nothing else of this project.
"""
