"""Scheduling decisions: which jobs start, are preempted, grow or shrink, or wait, and why. Pure.

May import `backends`, `jobs`, `training.spec`.
"""
