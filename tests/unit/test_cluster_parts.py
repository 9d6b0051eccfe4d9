"""What the embedded cluster computes without Kafka."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.runtime.dev.cluster import java_hash
from headrace.runtime.dev.processes import steady_ports

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("abc", 96_354),
        ("hello", 99_162_322),
        # Java gives the least integer here, of which there is no absolute value: Kafka takes 0.
        ("polygenelubricants", 0),
        # Outside of the basic plane Java hashes the two surrogates.
        ("\U0001f600", 1_772_899),
    ],
)
def test_a_string_hashes_as_in_java(text, expected):
    assert java_hash(text) == expected


@pytest.mark.skipif(not RANGE.exists(), reason="only Linux says which ports it gives to clients")
def test_ports_of_servers_that_come_back_are_not_those_of_outgoing_connections():
    ports = steady_ports(6)

    assert len(set(ports)) == 6
    assert max(ports) < int(RANGE.read_text().split()[0])
