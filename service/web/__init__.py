"""The console: pages of HTML under /, rendered by the server, that show and steer everything.

May import `access`, `api`, `cleanup`, `doctor`, `errors`, `jobs`, `queue`, `scheduling`, `secrets`,
`settings`, `training.spec`, `training.versions`.
"""
