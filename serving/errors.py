"""What a server answers when it cannot do what was asked."""

from __future__ import annotations

from headrace.runtime.errors import HeadraceError


class RegistryError(HeadraceError):
    """The schema registry refuses; ``code`` is Confluent's error code, its first digits HTTP's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def http_status(self) -> int:
        """Return the HTTP status: 40401 is a 404, 409 is itself."""
        return self.code if self.code < 1000 else self.code // 100
