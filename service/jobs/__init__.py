"""What a job is, which states it passes through, and what an end means for it. Pure.

May import `training.protocol`, `training.spec`.
"""
