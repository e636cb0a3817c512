"""The console: pages of HTML under /, rendered by the server, that show and steer everything.

May import `access`, `api`, `errors`, `jobs`, `queue`, `scheduling`, `training.spec`.
"""
