"""`syncbn doctor`: finds what is wrong with a service and says what to do, with or without a running server.

May import `client`, `errors`, `ports`, `queue`, `settings`, `training.host`, `training.versions`.
"""
