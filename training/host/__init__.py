"""Ranks on one machine: an agent forks them from a warm process, watches and ends them.

May import `callbacks`, `checkpoints`, `data`, `errors`, `hangs`, `linux`, `model`, `models`, `protocol`,
`rank`, `reserved`, `run_dir`, `spec`, `tracking`, `sync_bn`.
"""
