"""The Lightning callbacks of a training run, and the state that they save.

May import `checkpoints`, `console`, `errors`, `hangs`, `internals`, `loading`, `metric_internals`, `model`,
`run_dir`, `spec`, `tracking`, `sync_bn`.
"""
