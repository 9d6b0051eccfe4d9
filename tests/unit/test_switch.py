"""What a change of definitions means: for features, for what is committed, for what plan says."""

from __future__ import annotations

import pytest
from confluent_kafka import TopicPartition
from stream_cases import one_stage, two_stages

from headrace.cli.switch import outlook_lines
from headrace.features.changes import fates
from headrace.streams.commit import CommitNote, load_note
from headrace.streams.cutover import LeftTopic, Outlook
from headrace.streams.drain import QUIET_LOOKS, Drain
from headrace.streams.errors import PositionError
from headrace.streams.intake import end_batch
from headrace.streams.positions import OwnedPartition, claim, own

FEEDS = {"events": frozenset({"p.rekey.a.1", "p.rekey.b.2"})}


class Group:
    """A consumer that knows one committed offset of ten, and takes another."""

    def __init__(self, note, offset=5):
        self._note, self._offset = note, offset
        self.notes = []

    def committed(self, partitions, **_):
        return [
            TopicPartition(p.topic, p.partition, self._offset, metadata=self._note.dump())
            for p in partitions
        ]

    def get_watermark_offsets(self, *_, **__):
        return 0, 10

    def commit(self, *, offsets, **_):
        self.notes += [load_note(one.metadata) for one in offsets]


def taken(note, offset=5, counts=4, partition=0):
    group = Group(note, offset)
    place = [TopicPartition("events", partition)]
    (one,) = own(group, place, {"events": "id"}, 1, "stop", FEEDS, {"events": counts}, None)
    claim(group, [one], "w")
    return one, group.notes[0]


@pytest.mark.parametrize(("unread", "held"), [(0, 3), (2, 0), (2, 3)])
def test_a_topic_with_rows_that_nobody_has_scored_is_not_finished(unread, held):
    assert not LeftTopic("p.rekey.a.1", unread, held).is_finished
    assert LeftTopic("p.rekey.a.1", 0, 0).is_finished


# --- What is committed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "unsent"),
    [
        ("", {"p.rekey.a.1", "p.rekey.b.2"}),
        ("p.rekey.a.1 p.rekey.c.3", {"p.rekey.b.2"}),
        ("p.rekey.a.1 p.rekey.b.2", set()),
    ],
)
def test_what_a_note_does_not_name_is_sent_again_until_a_commit_says_that_it_is(sent, unsent):
    one, claimed = taken(CommitNote("id", sent=sent))

    assert one.unsent == unsent
    assert end_batch(one).unsent == unsent
    assert set(claimed.sent.split()) == set(FEEDS["events"]) - unsent
    one.done_offset = 4
    assert one.position() is None
    one.done_offset = 5
    position = one.position()
    # Nothing is new, and the note has to say so all the same.
    assert (position is not None) == bool(unsent)
    if position is not None:
        assert set(position.note().sent.split()) == FEEDS["events"]
        one.committed(position)
    assert one.unsent == set()
    assert one.position() is None


def test_a_partition_that_nobody_has_read_lacks_nothing():
    one, claimed = taken(CommitNote("id"), offset=-1001)

    assert one.unsent == set()
    assert set(claimed.sent.split()) == FEEDS["events"]


def test_rows_held_back_stand_in_the_note_and_outlive_a_claim():
    one, claimed = taken(CommitNote("id", held=3, sent="p.rekey.a.1 p.rekey.b.2"))

    assert claimed.held == 3
    one.held, one.done_offset = 2, 6
    assert one.position().note().held == 2


def test_a_partition_more_than_there_were_is_refused_with_two_ways_on():
    with pytest.raises(PositionError, match=r"keep the 4 partitions.*topic=.*another name"):
        taken(CommitNote("id"), partition=4)
    assert taken(CommitNote("id"), partition=3)[1].partitions == 4


# --- Draining -------------------------------------------------------------------------------------


def at_end(**changes):
    fields = {"emit_from": 0, "committed_offset": 7, "next_offset": 7, "done_offset": 7}
    given = {**fields, "high_offset": 7, "end_told": True, **changes}
    return OwnedPartition("t", 0, 1, "id", **given)


def test_a_drain_is_over_when_nothing_has_moved_for_a_few_looks():
    one = at_end()
    drain = Drain({("t", 0): one})

    seen = [drain.is_over(is_settled=True) for _ in range(QUIET_LOOKS + 1)]
    assert seen == [False] * QUIET_LOOKS + [True]
    one.next_offset = one.done_offset = one.high_offset = one.committed_offset = 9
    assert not drain.is_over(is_settled=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"end_told": False},
        {"high_offset": 8},
        {"done_offset": 6},
        {"committed_offset": 6},
        {"unsent": frozenset({"x"})},
    ],
)
def test_a_drain_goes_on_while_anything_is_left(changes):
    drain = Drain({("t", 0): at_end(**changes)})

    assert not any(drain.is_over(is_settled=True) for _ in range(QUIET_LOOKS + 2))
    settled = Drain({("t", 0): at_end()})
    assert not any(settled.is_over(is_settled=False) for _ in range(QUIET_LOOKS + 2))


# --- What plan says -------------------------------------------------------------------------------


def test_each_feature_has_its_fate():
    before, after = two_stages(delay="1d"), two_stages(delay="2d")

    found = fates(before, after)
    assert {found[name] for name in found if name.startswith("customer__")} == {"unchanged"}
    assert {found[name] for name in found if name.startswith("terminal__")} & {"changed", "new"}
    gone = fates(before, one_stage())
    assert {gone[name] for name in gone if name.startswith("terminal__")} == {"removed"}
    assert set(fates(before, before).values()) == {"unchanged"}


def test_another_source_option_changes_every_feature_that_reads_it():
    found = fates(two_stages(), two_stages(lateness="3h"))

    assert {found[name] for name in found if name.startswith("customer__")} == {"changed"}


def test_the_outlook_names_rows_what_is_left_and_a_gap():
    left = (LeftTopic("p.rekey.a.1", 2, 1), LeftTopic("p.rekey.b.2", 0, 0))

    text = "\n".join(outlook_lines(Outlook(left, replayed=70, dropped=0)))
    assert "70 rows of the sources are read again in silence" in text
    assert "p.rekey.a.1 is not finished: 2 messages are unread and 1 rows held back" in text
    assert "headrace worker --drain" in text
    assert "p.rekey.b.2 is finished" in text
    assert "gap" not in text
    gap = outlook_lines(Outlook((), replayed=70, dropped=9))[-1]
    assert "9 rows" in gap
    assert "refuses to start" in gap
