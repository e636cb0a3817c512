"""Chaos: the real API and schedulers on fake machines, while their parts are killed, stopped and taken away.

    python -m testing.chaos --database sqlite --seed 1 --minutes 3

Two API processes and two schedulers work on one database. The machines and the tracking server are those of
`service.backends.memory`, each in a process of its own that outlives any scheduler and is reached over a Unix
socket. Clients submit jobs, each several times with one idempotency key, and send commands. `plan` decides
from a seed which fault comes when. At the end everything must be accounted for (`checks`).

May import `service`, `training.protocol` and the other modules of `testing`.
"""
