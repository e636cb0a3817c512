"""Who may do what: API keys, scopes, the scope of each route, limits, the audit log's entries. Pure.

May import nothing else of this project.
"""
