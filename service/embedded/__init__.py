"""The embedded stack of `syncbn up`: starts, finds again and ends its servers.

May import `client`, `dispatcher`, `doctor`, `errors`, `foreground`, `identity`, `logs`, `ports`, `queue`,
`restarts`, `server`, `settings`, `training.host`.
"""
