"""The embedded infrastructure: real Kafka, Redis and the registry, started from wheels."""
