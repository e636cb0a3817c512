"""Jobs and sweeps: their fields, states and transitions, and what an attempt's end means for its job. Pure.

May import `training.protocol`, `training.spec`.
"""
