"""The command line, `syncbn`.

Exit codes: 0 success, or the job succeeded; 1 the job failed; 2 wrong usage, or the server refused the
request; 3 the job was cancelled; 4 no such job; 5 the server cannot be reached, or cannot answer now;
124 `wait --timeout` expired; 130 interrupted.

May import `client`, `differences`, `doctor`, `embedded`, `errors`, `escapes`, `roles`, `server`,
`user_code`, `training.errors`, `training.host`, `training.metric_names`, `training.spec`, `training.advise`,
`training.verify`, `training.verify_bits`.
"""

from service.cli.app import main

__all__ = ["main"]
