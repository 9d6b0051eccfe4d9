"""``headrace init`` and ``plan``, and what ``apply`` refuses before it touches anything."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from stream_cases import one_stage
from typer.testing import CliRunner

from headrace.cli.applied import (
    Applied,
    AppliedError,
    as_wide,
    check_partitions,
    read_applied,
    target_changes,
    target_of,
    write_applied,
)
from headrace.cli.init import InitError, make_project, project_name
from headrace.cli.main import app
from headrace.cli.plan_tree import dedupe_text
from headrace.features.errors import DefinitionError
from headrace.features.feast_repo.objects import repo_objects
from headrace.features.feast_repo.repository import repository_of
from headrace.features.feast_repo.text import REGISTRY_FILE
from headrace.features.project import load_project
from headrace.runtime.settings import load_settings
from headrace.runtime.topics import TopicSpec


@pytest.fixture
def folder(tmp_path):
    """Return a new project as ``headrace init`` makes it."""
    make_project(tmp_path / "site", "site")
    return tmp_path / "site"


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"NO_COLOR": "1"})


def applied_as_is(folder):
    project = load_project(folder)
    target = target_of(project)
    counts = {spec.name: spec.partitions for spec in target.topics}
    write_applied(project.settings, Applied(target.plan, counts, (), target.schemas))
    repository = repository_of(project.settings)
    repository.remember(repo_objects(project))
    (repository.folder / REGISTRY_FILE).touch()


def replace(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


# --- init -----------------------------------------------------------------------------------------


def test_init_makes_a_project_that_compiles(tmp_path):
    result = run("init", "My-Site", "--into", tmp_path / "made", "--json")

    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["project"] == "my_site"
    assert {"definitions.py", "headrace.yaml", "schemas/views.avsc", "README.md", ".gitignore"} <= {
        *told["files"]
    }
    assert not [name for name in told["files"] if "pycache" in name]
    assert run("plan", "--project", tmp_path / "made").exit_code == 0


def test_a_first_project_is_under_forty_lines(folder):
    lines = (folder / "definitions.py").read_text().splitlines()

    assert len(lines) < 40


def test_the_projects_own_generator_makes_events_of_its_schema(folder):
    import pyarrow.parquet as pq

    from headrace.features.columns import check_rows, event_columns

    subprocess.run([sys.executable, "generate.py", "500"], cwd=folder, check=True, text=True)

    project = load_project(folder)
    table = pq.read_table(project.settings.history["views"])
    (source,) = target_of(project).plan.pipelines[0].sources
    events = event_columns(table, source)
    assert events.length == 500
    assert not check_rows(events, None).any()
    assert (events.event_time_ms[1:] >= events.event_time_ms[:-1]).all()


def test_init_writes_over_nothing(tmp_path):
    (tmp_path / "kept.txt").write_text("mine")

    with pytest.raises(InitError, match="be new or empty"):
        make_project(tmp_path, "site")

    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize(("name", "made"), [("shop", "shop"), ("a/My Shop-2", "my_shop_2")])
def test_a_name_becomes_one_that_topics_can_have(name, made):
    assert project_name(name) == made


@pytest.mark.parametrize("name", ["", "2shops", "…", "x" * 64])
def test_a_name_that_topics_cannot_have_is_refused(name):
    with pytest.raises(InitError, match="begin with a letter"):
        project_name(name)


# --- plan -----------------------------------------------------------------------------------------


def test_plan_shows_everything_that_a_project_compiles_to(folder):
    shown = run("plan", "--project", folder).stdout

    for part in (
        "pipeline traffic scores every event of views",
        "decoder: fast",
        "stage 1: visitor (string key) reads views directly",
        "visitor__count_5m",
        "mean of seconds, last 1h",
        "derived seconds / visitor__seconds_mean_1d",
        "traffic.predictions",
        "site.deployments",
        "retention.ms=-1",
        "nothing is applied yet",
    ):
        assert part in shown


def test_a_schema_that_could_exhaust_the_reader_is_refused_at_its_source(folder):
    replace(
        folder / "schemas" / "views.avsc",
        '{"name": "page", "type": "string"}',
        '{"name": "page", "type": "string"}, {"name": "before", "type": ["null", "View"]}',
    )

    with pytest.raises(DefinitionError, match=r"^definitions.py:5: schema of source views: "):
        target_of(load_project(folder))


def test_plan_as_json_holds_plan_topics_schemas_and_changes(folder):
    told = json.loads(run("plan", "--project", folder, "--json").stdout)

    assert told["ProjectPlan"]["pipelines"][0]["name"] == "traffic"
    assert told["decoders"] == {"views": "fast"}
    assert {"views", "traffic.predictions"} <= {topic["name"] for topic in told["topics"]}
    assert set(told["schemas"]) == {
        "views-value",
        "traffic.predictions-value",
        "traffic.snapshots-value",
    }
    assert {"pipeline", "feature", "topic", "schema"} <= {c["what"] for c in told["changes"]}


def test_the_exit_code_tells_whether_an_apply_would_change_anything(folder):
    assert run("plan", "--project", folder).exit_code == 0
    assert run("plan", "--project", folder, "--exit-code").exit_code == 2

    applied_as_is(folder)
    assert run("plan", "--project", folder, "--exit-code").exit_code == 0

    replace(folder / "definitions.py", '["5m", "1h", "1d"]', '["5m", "1h", "2d"]')
    changed = run("plan", "--project", folder, "--exit-code")
    assert changed.exit_code == 2
    assert "+ feature visitor__count_2d" in changed.stdout
    assert "- feature visitor__count_1d" in changed.stdout
    assert "~ schema traffic.snapshots-value" in changed.stdout
    assert "schema views-value" not in changed.stdout


def test_a_wrong_definition_is_told_in_one_line_with_its_place(folder):
    replace(folder / "definitions.py", 'hr.mean("seconds"', 'hr.mean("second"')

    done = subprocess.run(
        [sys.executable, "-m", "headrace.cli.main", "plan", "--project", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("headrace: definitions.py:20: a column must be in the schema")
    assert "did you mean 'seconds'?" in done.stderr
    assert done.stderr.count("\n") == 1


# --- What was applied -----------------------------------------------------------------------------


def test_what_was_applied_is_read_back(folder):
    settings = load_settings(folder)
    assert read_applied(settings) == Applied()

    applied_as_is(folder)

    target = target_of(load_project(folder))
    again = read_applied(settings)
    assert again.plan == target.plan
    assert again.schemas == target.schemas
    assert target_changes(again, target) == ()


@pytest.mark.parametrize("content", ["", "{}", '{"version": 99}', '{"version": 1, "plan": {}}'])
def test_a_damaged_record_of_what_was_applied_is_refused(folder, content):
    settings = load_settings(folder)
    applied_as_is(folder)
    (settings.state_folder / "applied.json").write_text(content)

    with pytest.raises(AppliedError, match="delete it and run 'headrace apply'"):
        read_applied(settings)


def test_another_number_of_partitions_is_refused_with_the_ways_on():
    spec = TopicSpec("orders", "source", 8, 1)

    with pytest.raises(AppliedError) as refused:
        check_partitions([spec], {"orders": 4}, Applied(topics={"orders": 4}), ())

    assert "keep its 4 partitions" in str(refused.value)
    assert "set topics.partitions back to 4" in str(refused.value)
    assert "publish the history again" in str(refused.value)


def test_the_number_is_kept_even_while_the_topic_is_gone():
    spec = TopicSpec("orders", "source", 8, 1)

    with pytest.raises(AppliedError, match="keep its 4 partitions"):
        check_partitions([spec], {}, Applied(topics={"orders": 4}), ())
    check_partitions([spec], {}, Applied(topics={"orders": 8}), ())
    check_partitions([spec], {}, Applied(), ())


def test_a_topic_of_others_may_have_any_number_but_must_keep_it():
    check_partitions([], {"orders": 12}, Applied(), ["orders"])
    check_partitions([], {"orders": 12}, Applied(topics={"orders": 12}), ["orders"])

    with pytest.raises(AppliedError, match="its keys have moved"):
        check_partitions([], {"orders": 12}, Applied(topics={"orders": 6}), ["orders"])


def test_the_plan_says_what_finding_duplicates_costs():
    (source,) = one_stage(dedupe="23h", lateness="1h").sources

    text = dedupe_text(source)

    assert "each payment_id once in 23h" in text
    # 86.4 million ids of 22 bytes.
    assert "1,000 ids a second take 1.9 GB" in text
    assert "odds that a new one is taken for another: 5e-12" in text


def test_a_source_that_is_re_keyed_may_have_any_number_of_partitions(folder):
    replace(folder / "definitions.py", '    partitioner="murmur2",\n', "")
    project = load_project(folder)
    target = target_of(project)
    counts = {spec.name: spec.partitions for spec in target.topics} | {"views": 24}
    applied = Applied(target.plan, counts, (), target.schemas)

    assert target_changes(applied, target) == ()
    (own,) = [spec for spec in as_wide(target, {"views": 24}) if spec.name == "views"]
    assert own.partitions == 24


def test_a_source_that_is_read_directly_keeps_its_number(folder):
    target = target_of(load_project(folder))
    counts = {spec.name: spec.partitions for spec in target.topics} | {"views": 24}
    applied = Applied(target.plan, counts, (), target.schemas)

    (change,) = target_changes(applied, target)
    assert (change.what, change.name) == ("topic", "views")
    (own,) = [spec for spec in as_wide(target, {"views": 24}) if spec.name == "views"]
    with pytest.raises(AppliedError, match="keep its 24 partitions"):
        check_partitions([own], {"views": 24}, applied, ())


def test_plan_says_what_becomes_of_features_and_topics_without_a_broker(folder):
    applied_as_is(folder)
    replace(folder / "definitions.py", '"1h", "1d"]),', '"1h", "1d", "2d"]),')

    shown = run("plan", "--project", folder).stdout

    assert "when a worker starts with these definitions, of pipeline traffic" in shown
    assert "new (whole from its first event: the log is replayed): visitor__count_2d" in shown
    assert "unchanged (keeps its numbers): visitor__count_5m" in shown
    assert "how many rows that are cannot be said" in shown
