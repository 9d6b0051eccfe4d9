"""A project's folder: ``headrace.yaml``, ``definitions.py`` and what stands beside it, schemas.

``definitions.py`` is imported by path under a private name. Its absolute imports look into its own
folder first, as in a script; nobody else's do: neither ``sys.path`` nor ``sys.modules`` keeps a
trace, so a user's ``features.py`` shadows nothing and nothing shadows it.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.features.definitions import Entity, FeatureView, Pipeline, Source
from headrace.features.durations import duration_ms
from headrace.features.errors import DefinitionError, Location, ProjectError, refuse
from headrace.runtime.errors import explain
from headrace.runtime.settings import SETTINGS_FILE, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import CodeType, ModuleType

    from headrace.runtime.settings import Settings

D = TypeVar("D", Source, Entity, FeatureView, Pipeline)

DEFINITIONS_FILE = "definitions.py"
SCHEMAS_FOLDER = "schemas"


@dataclass(frozen=True, slots=True)
class Project:
    """A loaded project: what its ``definitions.py`` defines, in order, and its settings."""

    name: str
    folder: Path
    settings: Settings
    sources: tuple[Source, ...]
    entities: tuple[Entity, ...]
    views: tuple[FeatureView, ...]
    pipelines: tuple[Pipeline, ...]
    schemas: Mapping[str, str]

    @property
    def max_ahead_ms(self) -> int | None:
        """What the settings put in place of each source's ``max_ahead``, if anything."""
        text = self.settings.stream.max_ahead
        return None if text is None else duration_ms(text.replace(" ", ""))

    def pipeline(self, name: str) -> Pipeline:
        """Return the pipeline called ``name``.

        Raises:
            ProjectError: If the project has none of this name.

        """
        return _by_name(self.pipelines, name, "pipeline")

    def source(self, name: str) -> Source:
        """Return the source called ``name``.

        Raises:
            ProjectError: If the project has none of this name.

        """
        return _by_name(self.sources, name, "source")


def load_project(folder: Path | str) -> Project:
    """Return the project in ``folder``.

    Raises:
        SettingsError: If ``headrace.yaml`` is missing or wrong.
        ProjectError: If ``definitions.py`` is missing or fails.
        DefinitionError: If a definition breaks a rule that it can break alone, or a name is used
            twice; the rest is for the compiler.

    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        message = explain(
            "a project", "be a folder", str(folder), "headrace", "run 'headrace init'"
        )
        raise ProjectError(message)
    settings = load_settings(folder)
    file = folder / DEFINITIONS_FILE
    if not file.is_file():
        rule = f"hold {DEFINITIONS_FILE}"
        hint = "run 'headrace init', or name the folder with --project"
        raise ProjectError(explain("project folder", rule, str(folder), "definitions", hint))
    found = list(_definitions(_run(folder)))
    pipelines = _distinct(found, Pipeline)
    if not pipelines:
        at = Location(str(file), 0)
        raise refuse(
            at, "a project", "define a pipeline", "none", "headrace", "write hr.Pipeline(…)"
        )
    sources = _distinct(found, Source)
    return Project(
        name=settings.project,
        folder=folder,
        settings=settings,
        sources=sources,
        entities=_distinct(found, Entity),
        views=_distinct(found, FeatureView),
        pipelines=pipelines,
        schemas={s.name: _schema(folder, s) for s in sources if not _carries_schema(s)},
    )


def project_of(items: Iterable[object]) -> Project | None:
    """Return the project whose definitions file made one of the items, None if that is no one."""
    for item in items:
        location: Location | None = getattr(item, "location", None)
        if location is not None and Path(location.file).name == DEFINITIONS_FILE:
            folder = Path(location.file).parent
            if (folder / SETTINGS_FILE).is_file():
                return load_project(folder)
    return None


def _by_name(items: Sequence[D], name: str, what: str) -> D:
    from headrace.features.errors import did_you_mean

    for item in items:
        if item.name == name:
            return item
    hint = did_you_mean(name, [item.name for item in items])
    raise ProjectError(explain(f"a {what}", "be defined", name, "this project", hint))


# --- What a module defines ----------------------------------------------------------------------


def _definitions(module: ModuleType) -> Iterator[object]:
    """Yield every definition that a module holds or that one of them refers to."""
    for value in vars(module).values():
        yield from _reach(value)


def _reach(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        for item in value:
            if isinstance(item, Source | Entity | FeatureView | Pipeline):
                yield from _reach(item)
    elif isinstance(value, Pipeline):
        yield from _reach(value.source)
        yield from _reach(list(value.views))
        if value.label is not None:
            yield from _reach(value.label.source)
        yield value
    elif isinstance(value, FeatureView):
        yield from _reach(value.source)
        yield from _reach(value.entity)
        for item in value.features:
            parts = (getattr(item, "numerator", item), getattr(item, "denominator", item))
            for part in parts:
                yield from _reach(getattr(part, "source", None))
        yield value
    elif isinstance(value, Source | Entity):
        yield value


def _distinct(found: Iterable[object], kind: type[D]) -> tuple[D, ...]:
    names: dict[str, D] = {}
    for item in found:
        if not isinstance(item, kind):
            continue
        other = names.setdefault(item.name, item)
        if other is not item:
            what = f"the name of a {kind.__name__}"
            hint = f"the other one stands at {other.location}"
            raise refuse(item.location, what, "be used once", item.name, "this project", hint)
    return tuple(names.values())


# --- Schemas ------------------------------------------------------------------------------------


def _carries_schema(source: Source) -> bool:
    return source.schema is not None and not isinstance(source.schema, str)


def _schema(folder: Path, source: Source) -> str:
    path = (
        source.schema if isinstance(source.schema, str) else f"{SCHEMAS_FOLDER}/{source.name}.avsc"
    )
    file = folder / path
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        there = sorted(p.relative_to(folder).as_posix() for p in file.parent.glob("*.avsc"))
        hint = f"there are {', '.join(there)}" if there else "write the Avro schema of its events"
        where = f"source {source.name}"
        raise refuse(
            source.location, "the schema", "be a readable file", path, where, hint
        ) from None


# --- Importing by path --------------------------------------------------------------------------


def _run(folder: Path) -> ModuleType:
    """Import the folder's ``definitions.py`` and return it."""
    package = "_headrace_project_" + hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    finder = _ProjectFinder(package, folder)
    with _isolated(finder):
        try:
            return importlib.import_module(f"{package}.{Path(DEFINITIONS_FILE).stem}")
        except DefinitionError:
            raise
        except Exception as error:
            raise _failure(error, folder) from error


def _failure(error: Exception, folder: Path) -> ProjectError:
    """Return what went wrong in the user's own code, with the line of theirs that did it."""
    at = None
    if isinstance(error, SyntaxError) and error.filename:
        at = Location(error.filename, error.lineno or 0)
        text = f"it is no Python: {error.msg}"
    else:
        for frame in traceback.extract_tb(error.__traceback__):
            if Path(frame.filename).is_relative_to(folder):
                at = Location(frame.filename, frame.lineno or 0)
        text = f"{type(error).__name__}: {error}"
    return ProjectError(f"{at or folder}: definitions must import; {text}")


@contextlib.contextmanager
def _isolated(finder: _ProjectFinder) -> Iterator[None]:
    """Let the finder work for the time of one import, and take its modules out again."""
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if n.partition(".")[0] == finder.package]:
            del sys.modules[name]


class _ProjectFinder:
    """Finds the project's modules as submodules of a package of private name."""

    def __init__(self, package: str, folder: Path) -> None:
        self.package = package
        self.folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del target
        if name == self.package:
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(self.folder)]
            return spec
        if not name.startswith(self.package + ".") or path is None:
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        if found is None or found.origin is None or not found.origin.endswith(".py"):
            return found
        loader = _ProjectLoader(name, found.origin, self)
        return importlib.util.spec_from_file_location(
            name,
            found.origin,
            loader=loader,
            submodule_search_locations=found.submodule_search_locations,
        )

    def has(self, top: str) -> bool:
        """Return whether a module of this name stands beside ``definitions.py``."""
        if top == "headrace" or not top:
            return False
        return (self.folder / f"{top}.py").is_file() or (
            self.folder / top / "__init__.py"
        ).is_file()

    def import_(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002 - the signature of __import__
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Stand in for ``__import__`` in the project's own modules."""
        top = name.partition(".")[0]
        if level or not self.has(top):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = importlib.import_module(f"{self.package}.{name}")
        if not fromlist:
            return sys.modules[f"{self.package}.{top}"]
        for attribute in fromlist:
            if not hasattr(module, attribute) and hasattr(module, "__path__") and attribute != "*":
                with contextlib.suppress(ModuleNotFoundError):
                    importlib.import_module(f"{module.__name__}.{attribute}")
        return module


class _ProjectLoader(importlib.machinery.SourceFileLoader):
    """Runs a module with our ``__import__``, and always from its source: no stale bytecode."""

    def __init__(self, name: str, path: str, finder: _ProjectFinder) -> None:
        super().__init__(name, path)
        self._finder = finder

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        own = dict(vars(builtins))
        own["__import__"] = self._finder.import_
        module.__dict__["__builtins__"] = own
        super().exec_module(module)
