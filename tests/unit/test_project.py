"""A project is loaded by path, and leaves no trace in the import system."""
# ruff: noqa: E501 - a case holds the lines of a user's file, uncut.

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from headrace.features.compiler import compile_project
from headrace.features.errors import DefinitionError, ProjectError
from headrace.features.project import load_project
from headrace.runtime.errors import SettingsError

SCHEMA = {
    "type": "record",
    "name": "View",
    "fields": [{"name": "page", "type": "string"}, {"name": "at", "type": "long"}],
}
DEFINITIONS = """
import headrace as hr
{imports}
views = hr.Source("views", key="page", event_time="at")
page = hr.FeatureView(
    "page", entity=hr.Entity("page", key="page"), source=views, features=[hr.count(over={window})]
)
traffic = hr.Pipeline("traffic", source=views, views=[page])
"""


def write(folder, imports="", window='"1h"', **files):
    (folder / "schemas").mkdir(exist_ok=True)
    (folder / "schemas" / "views.avsc").write_text(json.dumps(SCHEMA))
    (folder / "headrace.yaml").write_text("project: web\n")
    text = DEFINITIONS.format(imports=textwrap.dedent(imports), window=window)
    (folder / "definitions.py").write_text(text)
    for name, content in files.items():
        path = folder / name.replace("__SLASH__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(content))


def window_of(folder):
    plan = compile_project(load_project(folder))
    return plan.pipelines[0].stages[0].features[0].name


def test_a_project_holds_what_its_definitions_define(tmp_path):
    write(tmp_path)

    project = load_project(tmp_path)

    assert project.name == "web"
    assert project.folder == tmp_path
    assert [s.name for s in project.sources] == ["views"]
    assert [e.name for e in project.entities] == ["page"]
    assert [v.name for v in project.views] == ["page"]
    assert [p.name for p in project.pipelines] == ["traffic"]
    assert json.loads(project.schemas["views"]) == SCHEMA
    assert project.pipeline("traffic") is project.pipelines[0]
    assert project.source("views") is project.sources[0]


def test_asking_for_what_is_not_there_says_what_is(tmp_path):
    write(tmp_path)
    project = load_project(tmp_path)

    with pytest.raises(ProjectError, match="did you mean 'traffic'"):
        project.pipeline("trafic")
    with pytest.raises(ProjectError, match="there are views"):
        project.source("x")


NEIGHBOURS = [
    ("from shared import WINDOW", {"shared.py": 'WINDOW = "2h"'}),
    ("import features; WINDOW = features.WINDOW", {"features.py": 'WINDOW = "2h"'}),
    ("from features import WINDOW", {"features.py": "from schemas import WINDOW", "schemas.py": 'WINDOW = "2h"'}),
    ("from json import WINDOW", {"json.py": 'WINDOW = "2h"'}),
    ("from .shared import WINDOW", {"shared.py": 'WINDOW = "2h"'}),
    ("import parts.windows as w; WINDOW = w.WINDOW", {"parts/__init__.py": "", "parts/windows.py": 'WINDOW = "2h"'}),
    ("import parts.windows; WINDOW = parts.windows.WINDOW", {"parts/__init__.py": "", "parts/windows.py": 'WINDOW = "2h"'}),
    ("from parts import windows; WINDOW = windows.WINDOW", {"parts/__init__.py": "", "parts/windows.py": 'WINDOW = "2h"'}),
    ("from parts import WINDOW", {"parts/__init__.py": "from .windows import WINDOW", "parts/windows.py": 'WINDOW = "2h"'}),
    ("from parts import WINDOW", {"parts/__init__.py": "from shared import WINDOW", "shared.py": 'WINDOW = "2h"'}),
    ("import headrace.features.durations as d; WINDOW = '2h' if d.UNIT_MS else ''", {"headrace.py": "1 / 0"}),
]  # fmt: skip


@pytest.mark.parametrize(("imports", "files"), NEIGHBOURS, ids=[i for i, _ in NEIGHBOURS])
def test_definitions_import_their_neighbours_and_nobody_else_does(tmp_path, imports, files):
    write(tmp_path, imports, "WINDOW", **{n.replace("/", "__SLASH__"): c for n, c in files.items()})
    path, modules, finders = list(sys.path), dict(sys.modules), list(sys.meta_path)

    assert window_of(tmp_path) == "page__count_2h"

    assert sys.path == path
    assert sys.meta_path == finders
    # What our own code imports for the first time may stay; what lies in the project may not.
    new = {name: module for name, module in sys.modules.items() if modules.get(name) is not module}
    assert not [n for n, m in new.items() if str(tmp_path) in str(getattr(m, "__file__", ""))]
    assert not [name for name in new if name.startswith("_headrace_project")]


def test_a_failure_leaves_no_trace_either(tmp_path):
    write(tmp_path, "import shared\n1 / 0", **{"shared.py": ""})
    finders = list(sys.meta_path)

    with pytest.raises(ProjectError, match="ZeroDivisionError"):
        load_project(tmp_path)

    assert sys.meta_path == finders
    assert not [name for name in sys.modules if name.startswith("_headrace_project")]


def test_a_changed_neighbour_is_read_anew(tmp_path):
    write(tmp_path, "from shared import WINDOW", "WINDOW", **{"shared.py": 'WINDOW = "2h"'})
    first = window_of(tmp_path)
    (tmp_path / "shared.py").write_text('WINDOW = "3h"')  # The same size in the same second.

    assert (first, window_of(tmp_path)) == ("page__count_2h", "page__count_3h")
    assert not list(tmp_path.rglob("__pycache__"))


def test_two_projects_in_one_process_keep_their_own_neighbours(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write(tmp_path / "one", "from features import W", "W", **{"features.py": 'W = "1h"'})
    write(tmp_path / "two", "from features import W", "W", **{"features.py": 'W = "2h"'})

    assert window_of(tmp_path / "one") == "page__count_1h"
    assert window_of(tmp_path / "two") == "page__count_2h"


def test_headrace_works_from_a_folder_with_a_features_file_of_the_users(tmp_path):
    write(tmp_path, **{"features.py": "MINE = True"})
    code = """
import sys
sys.path.insert(0, "")
import headrace as hr
hr.Source, hr.count, hr.col
from headrace.features.compiler import compile_project
compile_project(hr.load("."))
import features
assert features.MINE
assert features.__file__.endswith("features.py"), features.__file__
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_importing_headrace_loads_nothing_heavy():
    code = (
        "import sys, headrace as hr;"
        "heavy = {'numpy', 'numba', 'pyarrow', 'faust', 'feast', 'pandas', 'pydantic'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_definitions_are_found_in_lists_and_through_pipelines(tmp_path):
    write(tmp_path)
    text = (tmp_path / "definitions.py").read_text()
    (tmp_path / "definitions.py").write_text(
        text.replace("traffic = hr.Pipeline(", "made = {}\nmade['t'] = hr.Pipeline(")
        + "\ndel views, page\n"
    )

    project = load_project(tmp_path)

    assert [p.name for p in project.pipelines] == ["traffic"]
    assert [s.name for s in project.sources] == ["views"]


def test_two_pipelines_of_one_name_are_refused(tmp_path):
    write(tmp_path)
    with (tmp_path / "definitions.py").open("a") as file:
        file.write('again = hr.Pipeline("traffic", source=views, views=[page])\n')

    with pytest.raises(DefinitionError, match=r"definitions.py:9: the name of a Pipeline must be"):
        load_project(tmp_path)


def test_settings_reach_the_plan(tmp_path):
    write(tmp_path)
    (tmp_path / "headrace.yaml").write_text("project: web\nstream: {max_ahead: 30 d}\n")

    (source,) = compile_project(load_project(tmp_path)).pipelines[0].sources

    assert source.max_ahead_ms == 30 * 86_400_000


@pytest.mark.parametrize(
    ("missing", "error", "hint"),
    [
        ("definitions.py", ProjectError, "run 'headrace init'"),
        ("headrace.yaml", SettingsError, "run 'headrace init'"),
        ("schemas/views.avsc", DefinitionError, "write the Avro schema"),
    ],
)
def test_a_missing_file_is_named(tmp_path, missing, error, hint):
    write(tmp_path)
    (tmp_path / missing).unlink()

    with pytest.raises(error, match=missing) as refused:
        load_project(tmp_path)

    assert hint in str(refused.value)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ProjectError, match="nowhere"):
        load_project(tmp_path / "nowhere")
