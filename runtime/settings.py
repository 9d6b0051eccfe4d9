"""A project's settings: ``headrace.yaml``, the environment over it; the unknown is refused."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from headrace.runtime.errors import SettingsError, explain

SETTINGS_FILE = "headrace.yaml"
ENVIRONMENT_PREFIX = "HEADRACE__"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Scalar = str | int | float | bool

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def duration_ms(text: str) -> int:
    """Return the milliseconds of ``"250ms"``, ``"30s"``, ``"5m"``, ``"1h"`` or ``"90d"``.

    Raises:
        ValueError: If the text has another form.

    Examples:
        >>> duration_ms("90d")
        7776000000

    """
    match = re.fullmatch(r"(\d+)\s*(ms|s|m|h|d)", text.strip())
    if match is None:
        message = explain(
            "duration", "be a whole number and a unit", text, "a setting", "write '5m'"
        )
        raise ValueError(message)
    return int(match[1]) * _UNITS_MS[match[2]]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(_Section):
    """Which Kafka to use. Without servers, the embedded one of ``headrace up``."""

    bootstrap_servers: str | None = None
    #: Anything librdkafka takes (security, timeouts), handed to every client as it is.
    properties: dict[str, Scalar] = Field(default_factory=dict)


class RedisSettings(_Section):
    """Which Redis to use. Without a URL, the embedded one."""

    url: str | None = None


class RegistrySettings(_Section):
    """Which schema registry to use. Without a URL, the embedded one."""

    url: str | None = None


class TopicSettings(_Section):
    """How ``headrace apply`` makes topics."""

    partitions: int = Field(4, ge=1, le=10_000)
    replication: int = Field(1, ge=1, le=32_767)
    #: Kafka topic settings for the source topics, over ours (``max.message.bytes``, …).
    properties: dict[str, Scalar] = Field(default_factory=dict)


class CheckpointSettings(_Section):
    """How the workers keep their state, so that a restart replays what came since."""

    enabled: bool = True
    #: Null: ``checkpoints`` in the state folder.
    folder: Path | None = None
    #: Where each is copied to, for workers on other machines: ``s3://…``, ``gs://…``, ``file://…``.
    url: str | None = None
    #: Between two checkpoints of one partition.
    interval: Annotated[str, StringConstraints(pattern=r"^\d+\s*(ms|s|m|h|d)$")] = "60s"


class StreamSettings(_Section):
    """How the workers run."""

    guarantee: Literal["at_least_once", "exactly_once"] = "at_least_once"
    #: Exactly-once: which of the workers this is; null: a StatefulSet's replica, or any free one.
    ordinal: int | None = Field(None, ge=0, le=999)
    #: The longest time between commits; exactly-once commits sooner when traffic is light.
    commit_interval_ms: int = Field(1_000, ge=1, le=600_000)
    #: How long one hand-over may be worked on: its number of rows adapts to that. The source never
    #: waits to fill a batch.
    batch_budget_ms: int = Field(50, ge=1, le=10_000)
    batch_rows: int = Field(10_000, ge=1, le=1_000_000)
    max_record_bytes: int = Field(1_048_576, ge=1)
    #: In place of each source's own ``max_ahead``, as for a replay of a simulated future.
    max_ahead: Annotated[str, StringConstraints(pattern=r"^\d+\s*(ms|s|m|h|d)$")] | None = None
    checkpoints: CheckpointSettings = CheckpointSettings()
    #: 0: any free port, printed at the start. Null: no metrics page.
    metrics_port: int | None = Field(0, ge=0, le=65_535)


class OnlineSettings(_Section):
    """The view of the workers' state that is kept in Redis."""

    enabled: bool = True
    #: A value whose writer was not heard of for so long is served as STALE.
    stale_after: Annotated[str, StringConstraints(pattern=r"^\d+\s*(ms|s|m|h|d)$")] = "10s"


class LakeSettings(_Section):
    """The Delta tables that ``headrace lake`` writes."""

    #: ``headrace up`` starts the lake's process.
    enabled: bool = True
    folder: Path = Path(".headrace/lake")
    #: How long rows wait for company before they are appended.
    flush_interval_ms: int = Field(5_000, ge=1, le=600_000)
    flush_rows: int = Field(500_000, ge=1)
    #: Rows older than this are deleted; null: none.
    retention: Annotated[str, StringConstraints(pattern=r"^\d+\s*(ms|s|m|h|d)$")] | None = None


class EmbeddedSettings(_Section):
    """The embedded infrastructure of ``headrace up``."""

    #: Where the jars come from: the root of a Maven repository. Null: Maven Central.
    maven_mirror: str | None = None
    kafka_heap: Annotated[str, StringConstraints(pattern=r"^\d+[mg]$")] = "512m"


class Settings(BaseSettings):
    """All settings of a project."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__"
    )

    project: Name
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    registry: RegistrySettings = RegistrySettings()
    topics: TopicSettings = TopicSettings()
    stream: StreamSettings = StreamSettings()
    embedded: EmbeddedSettings = EmbeddedSettings()
    online: OnlineSettings = OnlineSettings()
    lake: LakeSettings = LakeSettings()
    #: Source name to the Parquet or Arrow file, or folder, that holds its history.
    history: dict[str, Path] = Field(default_factory=dict)
    #: The embedded infrastructure's data, logs and what ``headrace apply`` remembers.
    state_folder: Path = Path(".headrace")
    #: Model artefacts with their aliases.
    registry_folder: Path = Path("models")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over what is given; read nothing else."""
        del settings_cls, dotenv_settings, file_secret_settings
        return (env_settings, init_settings)


def load_settings(folder: Path) -> Settings:
    """Return the settings of the project in ``folder``, with relative paths made absolute.

    Raises:
        SettingsError: If there is no ``headrace.yaml``, or something in it or in the environment
            is unknown or wrong.

    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        message = explain(
            "project folder",
            f"hold {SETTINGS_FILE}",
            str(folder.absolute()),
            "settings",
            "run 'headrace init'",
        )
        raise SettingsError(message)
    _refuse_unknown_environment()
    try:
        settings = Settings(**_read(path))
    except ValidationError as error:
        raise SettingsError(_first_fault(error, path)) from None
    root = folder.absolute()
    checkpoints = settings.stream.checkpoints
    if checkpoints.folder is not None:
        kept = root / checkpoints.folder.expanduser()
        checkpoints = checkpoints.model_copy(update={"folder": kept})
    return settings.model_copy(
        update={
            "state_folder": root / settings.state_folder.expanduser(),
            "stream": settings.stream.model_copy(update={"checkpoints": checkpoints}),
            "lake": settings.lake.model_copy(
                update={"folder": root / settings.lake.folder.expanduser()}
            ),
            "registry_folder": root / settings.registry_folder.expanduser(),
            "history": {name: root / file.expanduser() for name, file in settings.history.items()},
        }
    )


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = f"{path.name} must be YAML; {' '.join(str(error).split())}"
        raise SettingsError(message) from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        message = explain(path.name, "hold keys and values", type(content).__name__, str(path))
        raise SettingsError(message)
    return content


def _refuse_unknown_environment() -> None:
    """Refuse a misspelled variable: pydantic-settings itself passes over an unknown first part."""
    for variable in sorted(os.environ):
        if not variable.upper().startswith(ENVIRONMENT_PREFIX):
            continue
        first = variable[len(ENVIRONMENT_PREFIX) :].split("__")[0].lower()
        if first not in Settings.model_fields:
            message = explain(
                "environment variable",
                "name a setting",
                variable,
                "settings",
                _hint(first, Settings),
            )
            raise SettingsError(message)


def _first_fault(error: ValidationError, path: Path) -> str:
    faults = error.errors()
    # An unknown key is the likelier cause of a missing one than the other way round.
    fault = next((one for one in faults if one["type"] == "extra_forbidden"), faults[0])
    location = [str(part) for part in fault["loc"]]
    name = ".".join(location)
    where = f"{path.name} or the environment"
    if fault["type"] == "extra_forbidden":
        return explain("setting", "be known", name, where, _hint(location[-1], _section(location)))
    if fault["type"] == "missing":
        return f"setting {name} must be given; got nothing in {where}"
    rule = fault["msg"][0].lower() + fault["msg"][1:]
    return f"setting {name} must be valid: {rule}; got {fault['input']!r} in {where}"


def _section(location: list[str]) -> type[BaseModel]:
    """Return the model that the last part of ``location`` should have been a field of."""
    model: type[BaseModel] = Settings
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return model


def _hint(name: str, model: type[BaseModel]) -> str:
    names = list(model.model_fields)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(names))}"
