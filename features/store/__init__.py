"""The online store: the newest values of every entity in Redis, in Feast's own layout."""
