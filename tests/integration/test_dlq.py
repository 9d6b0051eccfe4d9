"""`headrace dlq` on the real broker: what was refused can be seen, and sent again once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from live import LiveWorker, make_project, payments

START_MS = 1_750_000_000_000


@pytest.fixture
def project(project_folder):
    made = make_project(project_folder)
    yield made
    made.close()


def headrace(project, *arguments):
    """Run the command line and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "headrace.cli.main", *arguments, "--project", str(project.folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def all_refused(project):
    """Return what `dlq list --json` shows."""
    return [json.loads(line) for line in headrace(project, "dlq", "list", "--json").splitlines()]


def test_refused_records_are_listed_and_replayed_once_each_up_to_a_number_of_attempts(project):
    good, _ = payments(project, 5, START_MS, seed=8)
    source = project.plan.source
    with LiveWorker(project.folder) as worker:
        project.send(good)
        project.send([(b"c1", good[0][1][:-2]), (b"c2", b""), (b"c3", good[1][1][:-2])])
        project.read("dlq", 3)

        listed = [
            json.loads(line) for line in headrace(project, "dlq", "list", "--json").splitlines()
        ]
        assert sorted((one["reason"], one["attempt"]) for one in listed) == [
            ("empty", 1),
            ("truncated", 1),
            ("truncated", 1),
        ]
        assert {one["source"] for one in listed} == {source}
        only = headrace(project, "dlq", "list", source, "--reason", "empty")
        assert "empty" in only
        assert "truncated" not in only

        dry = headrace(project, "dlq", "replay", source, "--dry-run")
        assert "3 would be sent" in dry
        assert "2 sent" in headrace(project, "dlq", "replay", source, "--reason", "truncated")
        # Both are refused again; the markers of the replay are no records.
        while len(all_refused(project)) < 3:
            pass
        listed = [
            json.loads(line) for line in headrace(project, "dlq", "list", "--json").splitlines()
        ]
        assert sorted((one["reason"], one["attempt"]) for one in listed) == [
            ("empty", 1),
            ("truncated", 2),
            ("truncated", 2),
        ]
        left = headrace(project, "dlq", "replay", source, "--attempts", "2", "--dry-run")
        assert "1 empty would be sent" in left
        assert "2 left after too many attempts" in left
        assert worker.terminate() == 0


def test_a_repaired_cause_lets_a_replayed_record_through_with_its_key_and_headers(project):
    good, _ = payments(project, 3, START_MS, seed=9)
    unknown = good[0][1][:1] + (999_999).to_bytes(4, "big") + good[0][1][5:]
    with LiveWorker(project.folder) as worker:
        project.send([*good, (good[0][0], unknown)])
        (refused,) = project.read("dlq", 1)
        assert refused.key() == good[0][0]
        assert refused.value() == unknown
        assert dict(refused.headers())["headrace.errors.reason"] == b"unknown_schema"
        assert "1 sent" in headrace(project, "dlq", "replay", project.plan.source)
        replayed = max(project.read("payments", 5), key=lambda message: message.timestamp()[1])
        assert (replayed.key(), replayed.value()) == (good[0][0], unknown)
        assert replayed.headers() == [("headrace.errors.attempt", b"1")]
        assert worker.terminate() == 0
