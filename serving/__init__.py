"""Servers for others: the schema registry."""
