"""The peers' programs, each as its own documentation teaches; run by their own Python."""
