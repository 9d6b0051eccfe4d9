"""The Delta tables with their process and queries; point-in-time-correct history."""
