"""`syncbn up`: the servers that it starts, finds again and ends.

May import `dispatcher`, `errors`, `foreground`, `identity`, `ports`, `queue`, `restarts`, `server`,
`settings`.
"""
