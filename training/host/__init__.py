"""The host agent of one machine: forks ranks from a warm process, watches them and ends them.

May import `callbacks`, `checkpoints`, `console`, `data`, `errors`, `hangs`, `linux`, `masking`, `model`,
`models`, `protocol`, `rank`, `reserved`, `run_dir`, `spec`, `tracking`, `versions`,
`sync_bn`.
"""
