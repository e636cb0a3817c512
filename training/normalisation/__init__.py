"""Layers that take the place of BatchNorm, their way into a model, and out of it when it is exported.

May import `errors`, `spec`, `sync_bn`.
"""
