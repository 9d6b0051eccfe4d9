"""Who a worker is: its ordinal, which names its transactions and its place in the group.

The ordinal is the setting's, a StatefulSet's, or else the lowest that no process on this state
folder holds. A held ordinal is a locked file: the lock ends with its process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from headrace.runtime.errors import explain
from headrace.streams.errors import IdentityError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ORDINALS_MAX = 1_000
# Only there is a number at the end of the host's name a replica's; elsewhere it is part of a name.
_IN_KUBERNETES = "KUBERNETES_SERVICE_HOST"


@dataclass(slots=True)
class WorkerIdentity:
    """One worker of a group, for as long as ``lock`` is open.

    ``name`` is its transactional id and its group instance id.
    """

    name: str
    ordinal: int
    lock: TextIO

    def release(self) -> None:
        """Let another process be this worker."""
        self.lock.close()


def given_ordinal(setting: int | None, environment: Mapping[str, str], host: str) -> int | None:
    """Return the ordinal that setting or StatefulSet give; None: any free one.

    Examples:
        >>> given_ordinal(None, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "worker-3")
        3
        >>> given_ordinal(None, {}, "laptop-3") is None
        True

    """
    if setting is not None:
        return setting
    replica = re.fullmatch(r".*-(\d{1,3})", host) if environment.get(_IN_KUBERNETES) else None
    return int(replica[1]) if replica else None


def identify(folder: Path, group: str, setting: int | None) -> WorkerIdentity:
    """Be one worker of ``group``; locks lie in ``folder``.

    Raises:
        IdentityError: If another process is the worker of the given ordinal.

    """
    given = given_ordinal(setting, os.environ, socket.gethostname())
    folder.mkdir(parents=True, exist_ok=True)
    for ordinal in range(ORDINALS_MAX) if given is None else (given,):
        lock = _lock(folder / f"{group}.{ordinal}.lock")
        if lock is not None:
            return WorkerIdentity(f"{group}.{ordinal}", ordinal, lock)
    ordinal = ORDINALS_MAX if given is None else given
    holder = (folder / f"{group}.{ordinal}.lock").read_text() if given is not None else "others"
    raise IdentityError(
        explain(
            f"worker {group}.{ordinal}",
            "be one process",
            f"a second one, beside {holder.strip() or 'one that just started'}",
            str(folder),
            "give each worker its own stream.ordinal, or none",
        )
    )


def _lock(path: Path) -> TextIO | None:
    """Return the file, locked, with our process id in it; None where another holds it."""
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()}\n")
    file.flush()
    return file
