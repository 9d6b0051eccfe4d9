"""Drift: profiles of training sets, and tests of live snapshots against them. Pure."""
