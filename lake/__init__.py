"""Point-in-time-correct history over files and Arrow tables."""
