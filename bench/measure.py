"""How a contender is measured: outputs by the broker's stamps, CPU of its process tree."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import redis
from confluent_kafka import Consumer, KafkaError, TopicPartition

from headrace.runtime.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SAMPLE_EVERY_S = 0.1
MIB = 2**20
CLOCK = SystemClock()


class BenchError(Exception):
    """A contender gave no figure: it stalled, stopped early or wrote something else."""


@dataclass(frozen=True, slots=True)
class Drain:
    """What draining a topic took. ``rate`` is outputs over the time from first to last append.

    ``middle_rate`` is the rate between 10 % and 90 % of the outputs. CPU is taken between the same
    two instants as ``rate``, of the whole process tree, scaled to a million events.
    """

    name: str
    outputs: int
    startup_s: float
    drain_s: float
    rate: float
    middle_rate: float
    cpu_s_per_million: float
    rss_mib_max: float


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    cpu_s: float
    rss_mib: float


class TreeSampler:
    """Samples the CPU seconds and the memory of a process and all below it, until stopped."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._samples: list[_Sample] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._stopping.set()
        self._thread.join()

    def cpu_s_between(self, first_s: float, last_s: float) -> float:
        """Return the CPU seconds used between two instants, epoch s."""
        samples = list(self._samples)
        if not samples:
            return 0.0
        at = [sample.at_s for sample in samples]
        used = [sample.cpu_s for sample in samples]
        first, last = np.interp([first_s, last_s], at, used)
        return float(last - first)

    def cpu_s_until_now(self) -> float:
        """Return the CPU seconds used since the process began."""
        return self._samples[-1].cpu_s if self._samples else 0.0

    @property
    def rss_mib_max(self) -> float:
        """The largest sum of resident memory over the tree."""
        return max((sample.rss_mib for sample in self._samples), default=0.0)

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_EVERY_S):
            cpu_s, rss = 0.0, 0
            try:
                for process in (self._process, *self._process.children(recursive=True)):
                    # What a child used counts with its parent once it is gone and waited for.
                    cpu_s += sum(process.cpu_times()[:4])
                    rss += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            self._samples.append(_Sample(CLOCK.now_ms() / 1000, cpu_s, rss / MIB))


@dataclass(frozen=True, slots=True)
class Beside:
    """What another process did for a run: CPU of its tree, and of Redis the entities written."""

    name: str
    cpu_s_per_million: float
    did: str


class RedisMeter:
    """What a Redis did since the meter was made; its server's own word."""

    def __init__(self, url: str, name: str = "redis") -> None:
        self._name = name
        self._redis: Any = redis.Redis.from_url(url)
        self._cpu_s, self._writes = self._read()

    def since(self, events: int) -> Beside:
        """Return what it did, scaled to a million of so many events."""
        cpu_s, writes = self._read()
        self._redis.close()
        written = f"{writes - self._writes:,} entities written"
        return Beside(self._name, (cpu_s - self._cpu_s) * 1e6 / events, written)

    def _read(self) -> tuple[float, int]:
        cpu = self._redis.info("cpu")
        commands = self._redis.info("commandstats")
        # One HSET writes one entity, whatever views it has.
        writes = commands.get("cmdstat_hset", {}).get("calls", 0)
        return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"]), int(writes)


def end_offset_sums(consumer: Consumer, topics: Sequence[str], partitions: int) -> list[int]:
    """Return, per topic, how many messages its partitions hold."""
    return [
        sum(
            consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1]
            for partition in range(partitions)
        )
        for topic in topics
    ]


def drain(
    name: str,
    command: Sequence[str],
    bootstrap_servers: str,
    topics: Sequence[str],
    expected: int,
    *,
    partitions: int = 4,
    between: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    log: Path,
    stall_s: float = 120.0,
    quiet_s: float = 0.0,
) -> Drain:
    """Run a contender until each of the topics holds ``expected`` messages, and stop it.

    Args:
        name: What the figures are called.
        command: How to start it.
        bootstrap_servers: The broker.
        topics: What it writes; each must carry LogAppendTime and be empty.
        expected: Messages per topic.
        partitions: Partitions of each topic.
        between: Topics that it writes on the way: its work begins with the first append there.
        environment: Environment of the process; None for ours.
        folder: Where it is started; None for here.
        log: Where its output goes.
        stall_s: How long no new output may appear.
        quiet_s: How long none must appear at the end. Marks of transactions have offsets too, so
            a transactional contender's end is not known from their number.

    Raises:
        BenchError: If it stops or stalls before it is done.

    """
    probe = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "bench.probe"})
    start_s = CLOCK.now_ms() / 1000
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
    sampler = TreeSampler(process.pid)
    try:
        _wait_for_outputs(process, probe, name, topics, partitions, expected, stall_s, quiet_s, log)
        # One more sample after the last append.
        time.sleep(2 * SAMPLE_EVERY_S)
    finally:
        stop_process(process)
        sampler.stop()
        probe.close()
    stamps_ms = [append_times_ms(bootstrap_servers, topic, partitions) for topic in topics]
    begun_ms = [append_times_ms(bootstrap_servers, topic, partitions)[0] for topic in between]
    first_s = float(min([stamps[0] for stamps in stamps_ms] + begun_ms)) / 1000
    last_s = float(max(stamps[-1] for stamps in stamps_ms)) / 1000
    outputs = len(stamps_ms[0])
    low, high = int(0.1 * outputs), int(0.9 * outputs)
    middle_s = max(1e-3, float(stamps_ms[0][high] - stamps_ms[0][low]) / 1000)
    return Drain(
        name=name,
        outputs=outputs,
        startup_s=first_s - start_s,
        drain_s=last_s - first_s,
        rate=outputs / max(1e-3, last_s - first_s),
        middle_rate=(high - low) / middle_s,
        cpu_s_per_million=sampler.cpu_s_between(first_s, last_s) * 1e6 / outputs,
        rss_mib_max=sampler.rss_mib_max,
    )


def _wait_for_outputs(
    process: subprocess.Popen[bytes],
    probe: Consumer,
    name: str,
    topics: Sequence[str],
    partitions: int,
    expected: int,
    stall_s: float,
    quiet_s: float,
    log: Path,
) -> None:
    written, changed_s = [0] * len(topics), time.monotonic()
    while min(written) < expected or time.monotonic() - changed_s < quiet_s:
        time.sleep(SAMPLE_EVERY_S)
        now = end_offset_sums(probe, topics, partitions)
        if now != written:
            written, changed_s = now, time.monotonic()
        elif process.poll() is not None:
            message = (
                f"{name} stopped with {process.returncode} at {written} of {expected}; see {log}"
            )
            raise BenchError(message)
        elif time.monotonic() - changed_s > stall_s:
            message = f"{name} stalled at {written} of {expected}; see {log}"
            raise BenchError(message)


def stop_process(process: subprocess.Popen[bytes], patience_s: float = 20.0) -> None:
    """Ask a process to stop; kill it when it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def append_times_ms(bootstrap_servers: str, topic: str, partitions: int) -> NDArray[np.int64]:
    """Return the broker's stamps of all messages of a topic, sorted."""
    stamps = [
        message.timestamp()[1] for message in read_topic(bootstrap_servers, topic, partitions)
    ]
    if not stamps:
        msg = f"topic {topic} holds no message"
        raise BenchError(msg)
    return np.sort(np.array(stamps, np.int64))


def read_topic(bootstrap_servers: str, topic: str, partitions: int) -> Iterator[Any]:
    """Yield the messages that a topic holds now, in order per partition.

    Raises:
        BenchError: If no message comes for 15 s before the end is reached.

    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "bench.reader",
            "enable.auto.commit": False,
            "queued.max.messages.kbytes": 200_000,
            "queued.min.messages": 200_000,
            "enable.partition.eof": True,
        }
    )
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(partitions)])
        # To the partitions' ends, not by number: marks of transactions have offsets too.
        open_partitions = set(range(partitions))
        while open_partitions:
            first = consumer.poll(15.0)
            if first is None:
                msg = f"topic {topic} gave nothing for 15 s before its end"
                raise BenchError(msg)
            for message in (first, *consumer.consume(20_000, 0.0)):
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    open_partitions.discard(message.partition())
                else:
                    raise BenchError(str(error))
    finally:
        consumer.close()
