"""``headrace apply`` against a real broker and registry."""

from __future__ import annotations

import json

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from headrace.cli.applied import (
    AppliedError,
    apply_project,
    check_applied,
    read_applied,
    target_of,
)
from headrace.features.project import load_project
from headrace.runtime.kafka import admin, ensure_topics, partition_counts
from headrace.runtime.settings import load_settings
from headrace.runtime.topics import TopicSpec
from headrace.schemas.registry import SchemaRegistry

DEFINITIONS = """
import headrace as hr

events = hr.Source("{name}.events", key="who", event_time="at", schema="schemas/events.avsc"{extra})
facts = hr.Source("{name}.facts", key="who", event_time="at", schema="schemas/events.avsc")
who = hr.FeatureView(
    "who",
    entity=hr.Entity("who", key="who"),
    source=events,
    features=[{features}, hr.count(source=facts, name="facts", over="1d")],
)
pipe = hr.Pipeline("{name}", source=events, views=[who])
"""
FIELDS = [
    {"name": "who", "type": "string"},
    {"name": "at", "type": "long"},
    {"name": "amount", "type": "double"},
    {"name": "pieces", "type": "int"},
]


@pytest.fixture
def name(unique_name):
    return unique_name


@pytest.fixture
def project(project_folder, name):
    write(project_folder, name)
    return project_folder


def write(folder, name, features='hr.mean("amount", over="1d")', extra="", fields=FIELDS):
    schema = {"type": "record", "name": "Event", "fields": fields}
    (folder / "schemas" / "events.avsc").write_text(json.dumps(schema))
    text = DEFINITIONS.format(name=name, features=features, extra=extra)
    (folder / "definitions.py").write_text(text)


def client(stack):
    return admin({"bootstrap.servers": stack.bootstrap_servers})


def config_of(kafka: AdminClient, topic: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    (future,) = kafka.describe_configs([resource]).values()
    return {key: entry.value for key, entry in future.result().items()}


def expected_topics(name, project):
    sources = [f"{name}.events", f"{name}.facts"]
    return {
        **{f"{s}{end}": 4 for s in sources for end in ("", ".dlq", ".late")},
        rekey_of(name, project): 4,
        f"{name}.predictions": 4,
        f"{name}.snapshots": 4,
        f"{name}.deployments": 1,
        f"{name}.erasures": 1,
    }


def rekey_of(name, project):
    target = target_of(load_project(project))
    (rekey,) = [spec.name for spec in target.topics if spec.role == "rekey"]
    assert rekey.startswith(f"{name}.rekey.who.")
    return rekey


def test_apply_makes_what_the_plan_needs_and_twice_is_as_once(project, stack, name):
    trial = apply_project(project, dry_run=True)
    kafka = client(stack)
    assert partition_counts(kafka, expected_topics(name, project)) == {}
    assert set(trial.created) == set(expected_topics(name, project))
    assert set(trial.schemas.values()) == {None}

    first = apply_project(project)

    assert partition_counts(kafka, expected_topics(name, project)) == expected_topics(name, project)
    assert set(first.created) == set(expected_topics(name, project))
    replayed = config_of(kafka, f"{name}.events")
    assert replayed["message.timestamp.type"] == "LogAppendTime"
    assert replayed["retention.ms"] == "-1"
    assert config_of(kafka, rekey_of(name, project))["retention.ms"] == "-1"
    assert config_of(kafka, f"{name}.deployments")["cleanup.policy"] == "compact"
    with SchemaRegistry(stack.registry_url) as registry:
        assert registry.compatibility(f"{name}.events-value") == "FULL_TRANSITIVE"
        assert (
            registry.latest(f"{name}.snapshots-value")[0]
            == first.schemas[f"{name}.snapshots-value"]
        )

    second = apply_project(project)
    assert (second.first, second.changes, second.created) == (False, (), ())
    assert second.schemas == first.schemas


def test_only_what_is_applied_runs(project, name):
    check_applied(project, None)
    apply_project(project)
    check_applied(project, None)
    write(project, name, 'hr.mean("amount", over=["1d", "7d"])')

    with pytest.raises(AppliedError, match="'headrace apply' applies it"):
        check_applied(project, None)
    check_applied(project, "another")


def test_a_new_feature_is_a_compatible_change(project, name):
    first = apply_project(project)
    write(project, name, 'hr.mean("amount", over=["1d", "7d"])')

    second = apply_project(project)

    assert [(c.verb, c.what, c.name) for c in second.changes] == [
        ("added", "feature", "who__amount_mean_7d"),
        ("changed", "schema", f"{name}.snapshots-value"),
    ]
    assert second.created == ()
    subject = f"{name}.snapshots-value"
    assert second.schemas[subject] != first.schemas[subject]
    assert read_applied(load_settings(project)).schemas[subject].count("who__amount_mean") == 2


def test_a_feature_whose_type_changes_is_refused_before_anything_is_made(project, name):
    write(project, name, 'hr.max("pieces", name="most", over="1d")')
    apply_project(project)
    before = read_applied(load_settings(project))
    write(project, name, 'hr.max("amount", name="most", over="1d")')

    with pytest.raises(AppliedError, match="give a feature or field whose type changes a new"):
        apply_project(project)

    assert read_applied(load_settings(project)) == before


def test_a_field_without_default_is_refused(project, name):
    apply_project(project)
    write(project, name, fields=[*FIELDS, {"name": "new", "type": "string"}])

    with pytest.raises(AppliedError, match=r"\.events-value"):
        apply_project(project)


def test_another_number_of_partitions_is_refused(project):
    apply_project(project)
    settings = project / "headrace.yaml"
    settings.write_text(settings.read_text() + "topics: {partitions: 8}\n")

    with pytest.raises(AppliedError, match=r"set topics\.partitions back to 4"):
        apply_project(project)


def test_a_topic_that_producers_have_already_is_left_as_it_is(project, stack, name):
    kafka = client(stack)
    topic = f"{name}.events"
    ensure_topics(kafka, [TopicSpec(topic, "source", 6, 1, {"retention.ms": "1234567"})])

    outcome = apply_project(project)
    again = apply_project(project)

    assert outcome.foreign == (topic,) == again.foreign
    assert topic not in outcome.created
    assert partition_counts(kafka, [topic]) == {topic: 6}
    assert config_of(kafka, topic)["retention.ms"] == "1234567"
    assert again.changes == ()


def test_a_level_that_somebody_chose_for_a_subject_stays(project, stack, name):
    subject = f"{name}.events-value"
    with SchemaRegistry(stack.registry_url) as registry:
        registry.set_compatibility(subject, "BACKWARD")

        apply_project(project)

        assert registry.compatibility(subject) == "BACKWARD"


def test_topics_that_were_deleted_are_made_again(project, stack, name):
    from headrace.runtime.kafka import delete_topics

    apply_project(project)
    kafka = client(stack)
    delete_topics(kafka, [f"{name}.facts.late"])

    outcome = apply_project(project)

    assert outcome.created == (f"{name}.facts.late",)
