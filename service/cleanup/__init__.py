"""Removal of what ended jobs leave behind: on deletion all of it, by retention what its policy gives up.

May import `checkpoints`, `errors`, `jobs`, `log_files`, `queue`, `settings`, `training.checkpoints`,
`training.run_dir`.
"""
