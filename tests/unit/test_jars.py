"""The jars: nothing unpinned runs, and a failure to download says what to do."""

from __future__ import annotations

import hashlib
import http.server
import threading
from pathlib import PurePosixPath

import pytest

from headrace.runtime.dev import jars
from headrace.runtime.dev.jars import Jar, download
from headrace.runtime.dev.processes import free_ports
from headrace.runtime.errors import DownloadError

CONTENT = b"a jar"
JAR = Jar("org/example/thing/1/thing-1.jar", hashlib.sha256(CONTENT).hexdigest())


class Mirror(http.server.BaseHTTPRequestHandler):
    """A Maven repository that holds one file, and what was asked of it."""

    content = CONTENT
    failures = 0

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if len(self.server.asked) <= self.server.failures:
            self.send_error(503)
        elif self.path == f"/maven/{JAR.path}":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.server.content)
        else:
            self.send_error(404)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def mirror():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        server.content, server.failures, server.asked = CONTENT, 0, []
        server.url = f"http://127.0.0.1:{server.server_address[1]}/maven"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_every_jar_is_pinned_once_and_kafka_is_among_them():
    pins = jars.pinned()

    assert all(len(jar.sha256) == 64 and int(jar.sha256, 16) for jar in pins)
    assert all(PurePosixPath(jar.path).suffix == ".jar" for jar in pins)
    assert len({jar.name for jar in pins}) == len(pins)
    assert "kafka_2.13-4.1.0.jar" in {jar.name for jar in pins}


def test_a_jar_comes_from_the_mirror_once_and_then_from_the_cache(mirror, tmp_path):
    first = download([JAR], tmp_path, mirror.url + "/")
    second = download([JAR], tmp_path, mirror.url)

    assert first == second
    assert first[0].read_bytes() == CONTENT
    assert mirror.asked == [f"/maven/{JAR.path}"]


def test_progress_counts_what_is_downloaded(mirror, tmp_path):
    told = []

    download([JAR], tmp_path, mirror.url, lambda done, count: told.append((done, count)))

    assert told == [(1, 1)]


def test_a_jar_that_is_not_the_pinned_one_is_refused_and_not_kept(mirror, tmp_path):
    mirror.content = b"another jar"

    with pytest.raises(DownloadError, match="have the pinned sha256"):
        download([JAR], tmp_path, mirror.url)

    assert not list(tmp_path.rglob("*.jar"))


def test_a_passing_fault_of_the_mirror_is_tried_again(mirror, tmp_path):
    mirror.failures = 1

    assert download([JAR], tmp_path, mirror.url)[0].read_bytes() == CONTENT


def test_a_mirror_without_the_jar_is_named_with_its_answer(mirror, tmp_path):
    with pytest.raises(DownloadError, match="HTTP 404"):
        download([Jar("org/example/other.jar", JAR.sha256)], tmp_path, mirror.url)


def test_a_mirror_that_cannot_be_reached_is_named_with_what_can_be_done(tmp_path):
    root = f"http://127.0.0.1:{free_ports(1)[0]}"

    with pytest.raises(DownloadError) as refused:
        download([JAR], tmp_path, root)

    message = str(refused.value)
    assert f"{root}/{JAR.path}" in message
    assert "embedded.maven_mirror" in message
    assert "kafka.bootstrap_servers" in message
    assert "\n" not in message


def test_the_users_maven_settings_name_a_mirror(tmp_path):
    settings = tmp_path / "settings.xml"
    settings.write_text(
        '<settings xmlns="http://maven.apache.org/SETTINGS/1.2.0"><mirrors><mirror><id>a</id>'
        "<mirrorOf>other,central</mirrorOf><url>http://mirror.example/maven</url>"
        "</mirror></mirrors></settings>"
    )

    assert jars.maven_mirror(settings) == "http://mirror.example/maven"


@pytest.mark.parametrize("text", ["<settings/>", "no xml", None])
def test_maven_settings_without_a_mirror_change_nothing(tmp_path, text):
    settings = tmp_path / "settings.xml"
    if text is not None:
        settings.write_text(text)

    assert jars.maven_mirror(settings) is None
