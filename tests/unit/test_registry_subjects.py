"""What the registry knows is a function of its log."""

from __future__ import annotations

import json

import pytest

from headrace.serving.errors import RegistryError
from headrace.serving.registry_subjects import (
    Subjects,
    Version,
    deletion_record,
    level_record,
    schema_record,
)

LONG, STRING = '"long"', '"string"'


def told(*records):
    subjects = Subjects()
    for key, value in records:
        subjects.apply(key, value)
    return subjects


def registered(subject, number, schema_id, schema=LONG):
    return schema_record(Version(subject, number, schema_id, schema))


def refused(call, *arguments):
    with pytest.raises(RegistryError) as error:
        call(*arguments)
    return error.value.code, error.value.http_status


def test_an_empty_registry_allots_the_first_id_and_version_and_is_fully_strict():
    subjects = told()

    assert subjects.subjects() == []
    assert subjects.id_for(LONG) == 1
    assert subjects.next_version("a") == 1
    assert subjects.level("a") == "FULL_TRANSITIVE"


def test_records_have_the_keys_and_values_of_confluents_registry():
    key, value = registered("a", 1, 7)

    assert json.loads(key) == {"keytype": "SCHEMA", "subject": "a", "version": 1, "magic": 1}
    assert json.loads(value) == {
        "subject": "a",
        "version": 1,
        "id": 7,
        "schema": '"long"',
        "deleted": False,
    }
    assert level_record(None, "NONE") == (
        b'{"keytype":"CONFIG","subject":null,"magic":0}',
        b'{"compatibilityLevel":"NONE"}',
    )


def test_a_record_that_confluents_registry_wrote_is_understood():
    subjects = told(
        (b'{"keytype":"NOOP","magic":0}', None),
        (
            b'{"keytype":"SCHEMA","subject":"a","version":3,"magic":1}',
            b'{"subject":"a","version":3,"id":12,"md5":"x","schema":"\\"long\\"","deleted":false}',
        ),
        (
            b'{"keytype":"CONFIG","subject":"a","magic":0}',
            b'{"alias":null,"normalize":null,"compatibilityLevel":"BACKWARD"}',
        ),
    )

    assert subjects.version("a", "latest") == Version("a", 3, 12, LONG)
    assert subjects.level("a") == "BACKWARD"


def test_one_schema_has_one_id_in_all_subjects_however_it_is_written():
    subjects = told(registered("a", 1, 5, '{"type": "long", "doc": "x"}'))

    assert subjects.id_for('{"doc":"x","type":"long"}') == 5
    assert subjects.find("a", '{"doc":"x","type":"long"}') is not None
    assert subjects.id_for(STRING) == 6


def test_versions_are_found_by_number_and_as_the_latest():
    subjects = told(registered("a", 1, 1), registered("a", 2, 2, STRING))

    assert [version.version for version in subjects.versions("a")] == [1, 2]
    assert subjects.version("a", "1").schema == LONG
    assert subjects.version("a", "latest").schema == STRING
    assert subjects.version("a", "-1").schema == STRING


def test_what_is_not_there_is_refused_with_confluents_codes():
    subjects = told(registered("a", 1, 1))

    assert refused(subjects.versions, "b") == (40401, 404)
    assert refused(subjects.version, "a", "2") == (40402, 404)
    assert refused(subjects.version, "a", "first") == (42202, 422)
    assert refused(subjects.version, "a", "0") == (42202, 422)
    assert refused(subjects.schema, 2) == (40403, 404)
    assert refused(subjects.own_level, "a") == (40408, 404)


def test_a_deleted_version_is_gone_but_its_id_stays_readable_and_its_number_is_not_reused():
    gone = schema_record(Version("a", 1, 1, LONG, deleted=True))
    subjects = told(registered("a", 1, 1), gone)

    assert subjects.subjects() == []
    assert refused(subjects.versions, "a") == (40401, 404)
    assert subjects.schema(1) == LONG
    assert subjects.next_version("a") == 2
    assert subjects.id_for(LONG) == 1


def test_a_deleted_subject_loses_the_versions_up_to_that_record_only():
    subjects = told(
        registered("a", 1, 1),
        registered("a", 2, 2, STRING),
        deletion_record("a", 2),
        registered("a", 3, 1),
    )

    assert [version.version for version in subjects.versions("a")] == [3]


def test_levels_hold_for_a_subject_else_globally_and_can_be_taken_back():
    subjects = told(level_record(None, "NONE"), level_record("a", "FULL"))
    assert (subjects.level("a"), subjects.level("b")) == ("FULL", "NONE")

    subjects.apply(*level_record("a", None))

    assert subjects.level("a") == "NONE"


def test_every_use_of_an_id_is_found():
    subjects = told(registered("b", 1, 1), registered("a", 1, 1), registered("a", 2, 2, STRING))

    assert [(use.subject, use.version) for use in subjects.uses(1)] == [("a", 1), ("b", 1)]
