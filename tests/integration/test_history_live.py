"""Events, worker and lake as they run: what was served comes back; the audit explains the rest."""

from __future__ import annotations

import math
import random
import struct
import subprocess
import sys

import pytest
from live import LiveWorker, make_project

import headrace as hr
from headrace.lake.log_order import replay_direct
from headrace.lake.stored import open_stored
from headrace.lake.tables import Lake

START_MS = 1_750_000_000_000
HOUR_MS = 3_600_000
ROWS = 3_000


def bits(value):
    return None if value is None or math.isnan(value) else struct.pack("<d", value)


@pytest.fixture
def project(project_folder):
    made = make_project(project_folder)
    yield made
    made.close()


def shuffled_payments(project, seed):
    """Return payments of 30 customers, 20 s apart, each sent up to an hour after its turn."""
    draw = random.Random(seed)
    rows = [
        (number, START_MS + 20_000 * number, f"c{draw.randint(0, 29)}", draw.randint(1, 9_999) / 7)
        for number in range(ROWS)
    ]
    rows.sort(key=lambda row: row[1] + draw.randint(0, HOUR_MS))
    return [(row[2].encode(), project.payment(*row)) for row in rows]


def test_served_is_every_emitted_snapshot_and_event_order_differs_for_known_causes(project):
    project.send(shuffled_payments(project, seed=8))
    with LiveWorker(project.folder) as worker:
        # fastavro reads the topic: another reader than the lake's.
        emitted = {int(row["event_id"]): row for row in project.records("snapshots", ROWS)}
        assert worker.terminate() == 0, worker.output()
    command = [sys.executable, "-m", "headrace.cli.main", "lake", "--once"]
    subprocess.run([*command, "--project", str(project.folder)], check=True)
    plan = project.plan

    served = hr.history(None, plan, project=project.folder, as_of="served", ages=True)
    names = [*(column.name for column in plan.vector), "customer__age_ms"]
    assert served.num_rows == len(emitted) == ROWS
    for row in served.to_pylist():
        for name in names:
            assert bits(row[name]) == bits(emitted[row["payment_id"]][name]), name

    lake = Lake(project.environment.project.settings.lake.folder)
    reader = open_stored(lake.table(plan.source), plan.source, "event_time")
    by_place = {(row["source_partition"], row["source_offset"]): row for row in emitted.values()}
    replayed = 0
    for position, numbers in replay_direct(plan, plan.stages[0], reader):
        for index, place in enumerate(position.tolist()):
            row = by_place[place >> 46, place & ((1 << 46) - 1)]
            assert all(bits(values[index]) == bits(row[name]) for name, values in numbers.items())
            replayed += 1
    assert replayed == ROWS

    event = hr.history(None, plan, project=project.folder, sources="lake")
    differing = sum(
        any(bits(row[name]) != bits(emitted[row["payment_id"]][name]) for name in names[:-1])
        for row in event.to_pylist()
    )
    found = hr.audit(plan.name, project=project.folder)
    assert (found.compared, found.differing) == (ROWS, differing)
    assert differing > ROWS // 10
    assert found.causes["order"] == differing
    assert found.causes["unexplained"] == 0
