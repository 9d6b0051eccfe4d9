"""What can go wrong with schemas, as exceptions. Bad records are not exceptions but data."""

from __future__ import annotations

from headrace.runtime.errors import HeadraceError


class SchemaError(HeadraceError):
    """The root of this room's errors."""


class SchemaRefused(SchemaError):  # noqa: N818 - a verdict on the schema, named as in the design.
    """A schema is not valid Avro, or a record of it could exhaust the reader."""


class EncodeError(SchemaError):
    """A batch does not fit the schema that it is to be written with."""


class UnknownSchemaError(SchemaError):
    """The registry answered that it holds no such schema, subject or version."""


class IncompatibleSchemaError(SchemaError):
    """The registry refused a schema because of the subject's compatibility level."""


class RegistryUnavailableError(SchemaError):
    """The registry did not give an answer; the same question may succeed later."""
