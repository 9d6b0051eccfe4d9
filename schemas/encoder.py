"""Arrow batches to Avro records in Confluent's wire format."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pyarrow as pa
import pyruhvro

from headrace.runtime.errors import explain
from headrace.schemas.avro import parse_record
from headrace.schemas.errors import EncodeError
from headrace.schemas.program import arrow_schema

if TYPE_CHECKING:
    from typing import Final

MAGIC: Final = 0


class RecordEncoder:
    """Encodes batches with one registered schema: ``schema`` as JSON, ``schema_id``."""

    def __init__(self, schema: str, schema_id: int) -> None:
        """Compile the schema.

        Raises:
            SchemaRefused: If the schema is not valid.

        """
        self.schema = schema
        self.schema_id = schema_id
        self._header = struct.pack(">bI", MAGIC, schema_id)
        self.arrow_schema: pa.Schema = arrow_schema(parse_record(schema))

    def encode(self, batch: pa.RecordBatch) -> list[bytes]:
        """Return one message value per row.

        Raises:
            EncodeError: If a column is missing, has another type, or holds a null it must not.

        """
        try:
            fitted = pa.RecordBatch.from_arrays(
                [batch.column(name) for name in self.arrow_schema.names],
                schema=self.arrow_schema,
            )
        except (KeyError, pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
            raise EncodeError(
                explain("batch", f"have the columns {self.arrow_schema}", batch.schema, "encoding")
            ) from error
        header = self._header
        parts = pyruhvro.serialize_record_batch(fitted, self.schema, 1)
        return [header + body for part in parts for body in part.to_pylist()]
