"""One rank of a run, from the fork to its exit record.

May import `bits`, `callbacks`, `checkpoints`, `console`, `errors`, `group_internals`, `hangs`, `internals`,
`linux`, `loading`, `masking`, `metric_names`, `model`, `normalisation`, `protocol`, `run_dir`, `spec`,
`tracking`, `sync_bn`.
"""
