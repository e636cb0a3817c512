"""Who starts, who gets or gives back workers, who waits and why. Pure.

May import `backends`, `jobs`, `training.spec`.
"""
