"""From class paths to the module that is trained, and from that to the model that is saved.

May import `errors`, `spec`, `tracking`, `sync_bn`.
"""
