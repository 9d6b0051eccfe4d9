"""``./dev chaos``: faults against real processes, and what they did to the outputs."""
