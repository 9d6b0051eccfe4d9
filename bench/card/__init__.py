"""The card job: three windows of count and mean per customer and a score, for each of a million events."""
