"""Which clock a process has: the machine's, or one that is wrong on purpose."""

from __future__ import annotations

from headrace.runtime.clock import OFFSET_FILE_VARIABLE, SystemClock, WrongClock, process_clock

HOUR_MS = 3_600_000


def test_a_process_has_the_machines_clock(monkeypatch):
    monkeypatch.delenv(OFFSET_FILE_VARIABLE, raising=False)

    assert type(process_clock()) is SystemClock


def test_a_file_makes_the_time_of_day_wrong_and_sets_it_back_but_not_monotonic_time(
    tmp_path, monkeypatch
):
    file = tmp_path / "offset"
    file.write_text(str(HOUR_MS))
    monkeypatch.setenv(OFFSET_FILE_VARIABLE, str(file))
    clock, machine = process_clock(), SystemClock()

    before_ms, ahead_ms, monotonic_ms = machine.now_ms(), clock.now_ms(), clock.monotonic_ms()
    file.write_text(f"-{HOUR_MS}\n")
    behind_ms, after_ms = clock.now_ms(), machine.now_ms()

    assert isinstance(clock, WrongClock)
    assert before_ms <= ahead_ms - HOUR_MS <= after_ms
    assert before_ms <= behind_ms + HOUR_MS <= after_ms
    assert monotonic_ms <= clock.monotonic_ms() <= machine.monotonic_ms()
