"""Brings Kafka's jars: a fixed list, each verified against its sha256, kept in a cache folder.

The list is complete, so nothing is resolved at run time and nothing but what was pinned can run.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from headrace.runtime.errors import DownloadError, explain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import httpx

_PINS = "jars.sha256"
_DOWNLOADS = 6
_TIMEOUT_S = 30.0
_ATTEMPTS = 3


def _central() -> str:
    """Return Maven Central's address, which jgo knows; its import costs 0.4 s, so not before."""
    from jgo.constants import MAVEN_CENTRAL_URL

    return str(MAVEN_CENTRAL_URL)


@dataclass(frozen=True, slots=True)
class Jar:
    """A pinned file: its path in a Maven repository and the sha256 that it must have."""

    path: str
    sha256: str

    @property
    def name(self) -> str:
        """Return the file's name."""
        return self.path.rsplit("/", 1)[1]


def pinned() -> tuple[Jar, ...]:
    """Return the list of jars, in the order of the class path."""
    text = resources.files(__package__).joinpath(_PINS).read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return tuple(Jar(path, sha256) for sha256, path in lines)


def cache_folder() -> Path:
    """Return where downloads are kept: ``$HEADRACE_CACHE``, else below the user's cache folder."""
    own = os.environ.get("HEADRACE_CACHE")
    if own:
        return Path(own).absolute()
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "headrace"


def fetch(
    mirror: str | None, progress: Callable[[int, int], None] | None = None
) -> tuple[Path, ...]:
    """Return Kafka's jars on disk, downloading what the cache does not hold.

    Args:
        mirror: Root of a Maven repository; None: the user's Maven settings, else Maven Central.
        progress: Is told (jars done, jars to download) after each download.

    Raises:
        DownloadError: If a jar cannot be had, or is not the pinned one.

    """
    root = mirror or maven_mirror(Path.home() / ".m2" / "settings.xml")
    return download(pinned(), cache_folder() / "jars", root, progress)


def download(
    jars: Sequence[Jar],
    folder: Path,
    root: str | None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, ...]:
    """Return the files of ``jars`` in ``folder``, after bringing those that it lacks from ``root``.

    ``root`` is the address of a Maven repository, None for Maven Central.

    A jar enters the folder under its sha256 only after it was verified, by a rename; so a file
    that is there is whole, and several processes may download at once.

    Raises:
        DownloadError: If a jar cannot be had, or is not the pinned one.

    """
    paths = tuple(folder / jar.sha256[:16] / jar.name for jar in jars)
    missing = [(jar, path) for jar, path in zip(jars, paths, strict=True) if not path.is_file()]
    if missing:
        _download_all(missing, (root or _central()).rstrip("/"), progress)
    return paths


def _download_all(
    missing: list[tuple[Jar, Path]], root: str, progress: Callable[[int, int], None] | None
) -> None:
    # httpx takes 0.3 s to import; a start with a full cache does without it.
    import httpx

    context = ssl.create_default_context()
    with (
        httpx.Client(timeout=_TIMEOUT_S, follow_redirects=True, verify=context) as client,
        ThreadPoolExecutor(_DOWNLOADS) as threads,
    ):
        waiting = [threads.submit(_download, client, root, jar, path) for jar, path in missing]
        try:
            for done, future in enumerate(waiting, 1):
                future.result()
                if progress is not None:
                    progress(done, len(missing))
        except DownloadError:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _download(client: httpx.Client, root: str, jar: Jar, path: Path) -> None:
    content = _get(client, f"{root}/{jar.path}", jar)
    found = hashlib.sha256(content).hexdigest()
    if found != jar.sha256:
        message = explain(
            jar.name,
            f"have the pinned sha256 {jar.sha256[:16]}…",
            f"{found[:16]}…",
            f"{root}/{jar.path}",
            "do not use this mirror",
        )
        raise DownloadError(message)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        message = explain(
            "cache folder",
            "be writable",
            str(path.parent),
            jar.name,
            f"{error.strerror}; set HEADRACE_CACHE",
        )
        raise DownloadError(message) from error


def _get(client: httpx.Client, url: str, jar: Jar) -> bytes:
    import httpx

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            response = client.get(url)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # What cannot be reached at all will not be there a moment later either.
            if attempt < _ATTEMPTS and isinstance(
                error, httpx.ReadError | httpx.RemoteProtocolError
            ):
                continue
            raise _unreachable(jar, url, str(error) or type(error).__name__) from error
        if response.status_code == httpx.codes.OK:
            return response.content
        if attempt == _ATTEMPTS or not response.is_server_error:
            raise _unreachable(jar, url, f"HTTP {response.status_code}")
    raise AssertionError(url)


def _unreachable(jar: Jar, url: str, cause: str) -> DownloadError:
    message = explain(
        f"Kafka's {jar.name}",
        "be downloadable once, at the first start",
        cause,
        url,
        "check the network or proxy, set embedded.maven_mirror to a Maven repository that you can "
        "reach, or kafka.bootstrap_servers to a Kafka that you have",
    )
    return DownloadError(message)


def maven_mirror(settings: Path) -> str | None:
    """Return the mirror of Maven Central that a Maven settings file names, if any."""
    try:
        tree = ET.parse(settings)  # noqa: S314 - the user's own file, read with their rights.
    except (OSError, ET.ParseError):
        return None
    for mirror in tree.getroot().iterfind("{*}mirrors/{*}mirror"):
        of = mirror.findtext("{*}mirrorOf") or ""
        url = mirror.findtext("{*}url")
        if url and {"*", "central", "external:*"} & {part.strip() for part in of.split(",")}:
            return url.strip()
    return None
