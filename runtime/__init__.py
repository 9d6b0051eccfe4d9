"""The bottom: settings, errors, logging, clock, Kafka client, topic names, metrics."""
