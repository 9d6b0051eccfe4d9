"""Whatever the keys, values and times are: what is packed says the same when it is read."""

from __future__ import annotations

import numpy as np
import pytest
import store_cases as cases
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.features.store.layout import (
    Fence,
    KeyLayout,
    feature_field,
    key_values,
    read_time_ms,
    read_value,
    time_field,
)
from headrace.features.store.packing import WritePacker

KEYS = {
    "int64": st.integers(-(2**63), 2**63 - 1),
    "string": st.text(st.characters(exclude_categories=["Cs"])),
    "bytes": st.binary(max_size=300),
}
WHOLE = st.one_of(st.integers(-(2**53), 2**53).map(float), st.just(np.nan))
TIMES = st.integers(-(2**61), 2**61)
VERSIONS = st.integers(0, 2**63 - 1)


def packed(entity, rows, clock_ms, partition=7, lineage=42):
    data, calls = WritePacker(entity, "a" * 40).pack(partition, lineage, rows, clock_ms)
    assert len(cases.commands(data)) == calls
    return cases.unpacked(data)


@pytest.mark.parametrize("kind", KEYS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_packed_rows_read_back_equal(kind, data):
    keys = data.draw(st.lists(KEYS[kind], min_size=1, max_size=12, unique=True))
    count = len(keys)
    row = st.tuples(WHOLE, st.floats(), TIMES, TIMES, VERSIONS)
    drawn = data.draw(st.lists(row, min_size=count, max_size=count))
    whole, doubles, times, as_of, versions = map(list, zip(*drawn, strict=True))
    rows = cases.EntityRows(
        cases.rows(keys, np.zeros((count, 2)), kind=kind).keys,
        np.column_stack([whole, doubles]),
        *(np.array(column, np.int64) for column in (times, as_of, versions)),
    )
    entity = cases.entity(project="p", kind=kind)

    found = packed(entity, rows, cases.NOW_MS)

    assert len(found) == count
    layout, (number, double) = KeyLayout.of(entity), map(feature_field, entity.features)
    for index, key in enumerate(key_values(kind, rows.keys)):
        ttl_ms, fence, fields = found[layout.key(key)]
        assert Fence.read(fence) == Fence(42, versions[index], max(0, as_of[index]), 7)
        assert read_time_ms(fields[time_field("spending")]) == times[index]
        assert same(read_value(fields[number]), whole[index])
        assert same(read_value(fields[double]), doubles[index])
        left_ms = times[index] + entity.expiry_ms - cases.NOW_MS
        assert ttl_ms == min(max(1_000, left_ms), 10**13)


def same(found, value):
    return found is None if np.isnan(value) else found == value


FENCES = st.tuples(st.integers(0, 10**15 - 1), VERSIONS, st.integers(0, 2**61))


@settings(max_examples=100, deadline=None)
@given(one=FENCES, two=FENCES)
def test_fences_have_the_order_of_their_numbers_as_texts_too(one, two):
    entity = cases.entity()
    texts = []
    for lineage, version, as_of_ms in (one, two):
        rows = cases.rows([1], [[1, 1]], 0, as_of_ms, version)
        ((_, fence, _),) = packed(entity, rows, 0, lineage=lineage).values()
        texts.append(fence)

    assert (one < two) == (texts[0] < texts[1])
    assert {len(text) for text in texts} == {61}
