"""Definitions, compiler, plan, kernels and state: everything a feature is, without any I/O."""
