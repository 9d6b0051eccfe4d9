"""A source whose producer works in transactions: marks and aborted rows have offsets, too."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from live import LiveWorker, make_project, payments

START_MS = 1_750_000_000_000


@pytest.fixture
def project(project_folder):
    made = make_project(project_folder)
    yield made
    made.close()


def ends(project):
    """Return the sum of the offsets behind the last record or mark of each partition."""
    consumer = Consumer({"bootstrap.servers": project.bootstrap_servers, "group.id": "test.ends"})
    wanted = [TopicPartition(project.topic("payments"), p) for p in range(project.partitions)]
    found = sum(consumer.get_watermark_offsets(one, timeout=10)[1] for one in wanted)
    consumer.close()
    return found


def test_what_is_committed_reaches_the_end_behind_an_aborted_transaction(project, wait_until):
    messages, rows = payments(project, 400, START_MS, seed=4)
    producer = Producer(
        {
            "bootstrap.servers": project.bootstrap_servers,
            "transactional.id": f"{project.topic('payments')}.producer",
        }
    )
    producer.init_transactions(30)

    def transaction(some, *, commit):
        producer.begin_transaction()
        for key, value in some:
            producer.produce(project.topic("payments"), value, key, project.place(key))
        producer.flush(30)
        if commit:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)

    with LiveWorker(project.folder) as worker:
        transaction(messages[:200], commit=True)
        project.read("predictions", 200)
        wait_until(lambda: project.committed() == ends(project))
        transaction(messages[200:300], commit=False)
        wait_until(lambda: project.committed() == ends(project))
        wait_until(
            lambda: (
                not any(
                    value
                    for name, value in worker.metrics().items()
                    if name.startswith("headrace_lag_records")
                )
            )
        )
        transaction(messages[300:], commit=True)
        found = project.records("predictions", 300)
        assert worker.terminate() == 0, worker.output()

    wanted = [row[0] for row in rows[:200] + rows[300:]]
    assert sorted(int(one["event_id"]) for one in found) == wanted
