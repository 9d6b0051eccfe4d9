"""The project as a Feast repository: objects, their text, the offline tables, and applying it.

Feast itself is imported in ``apply`` only, which runs as a process of its own: the import costs
5 s of CPU.
"""
