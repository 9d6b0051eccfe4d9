"""The card job: counts and means per customer and a score, for each of a million events."""
