"""Deterministic simulation: the real source, commit, stages and store feed over Kafka in memory."""
