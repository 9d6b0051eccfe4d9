"""Errors of the drift room."""

from __future__ import annotations

from headrace.runtime.errors import HeadraceError


class ProfileError(HeadraceError):
    """A profile cannot be read: it is of a later format, or not whole."""
