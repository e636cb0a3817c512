"""What a training does beside Lightning's own loop: Lightning callbacks, and the state that they save.

May import `checkpoints`, `console`, `hangs`, `loading`, `model`, `run_dir`, `spec`, `tracking`, `sync_bn`.
"""
