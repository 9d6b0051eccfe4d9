"""The registry's client: what it remembers, and a no told apart from no answer."""

from __future__ import annotations

import json

import httpx
import pytest

from headrace.schemas.errors import (
    IncompatibleSchemaError,
    RegistryUnavailableError,
    SchemaRefused,
    UnknownSchemaError,
)
from headrace.schemas.registry import UNKNOWN_SECONDS, SchemaRegistry

URL = "http://registry.invalid:8081/base"


class Server:
    """Answers as a registry does; each answer can be set, each question is kept."""

    def __init__(self) -> None:
        self.answers: dict[str, httpx.Response | httpx.HTTPError] = {}
        self.asked: list[str] = []
        self.bodies: list[object] = []
        self.seconds = 0.0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode().removeprefix("/base")
        question = f"{request.method} {path}"
        self.asked.append(question)
        self.bodies.append(json.loads(request.content) if request.content else None)
        answer = self.answers[question]
        if isinstance(answer, httpx.HTTPError):
            raise answer
        return answer

    def client(self) -> SchemaRegistry:
        return SchemaRegistry(
            URL, monotonic=lambda: self.seconds, transport=httpx.MockTransport(self)
        )

    def says(self, question: str, status: int, body: object) -> None:
        self.answers[question] = httpx.Response(status, json=body)


@pytest.fixture
def server() -> Server:
    return Server()


def test_a_schema_is_asked_for_once(server: Server) -> None:
    server.says("GET /schemas/ids/7", 200, {"schema": '"long"'})
    with server.client() as registry:
        assert [registry.schema(7), registry.schema(7)] == ['"long"', '"long"']

    assert server.asked == ["GET /schemas/ids/7"]


def test_an_unknown_id_is_asked_for_again_only_after_a_while(server: Server) -> None:
    server.says("GET /schemas/ids/7", 404, {"error_code": 40403, "message": "not found"})
    with server.client() as registry:
        for _ in range(3):
            with pytest.raises(UnknownSchemaError, match="schema id 7"):
                registry.schema(7)
        assert len(server.asked) == 1
        server.says("GET /schemas/ids/7", 200, {"schema": '"long"'})
        server.seconds = UNKNOWN_SECONDS

        assert registry.schema(7) == '"long"'


def test_schemas_of_other_languages_are_unknown(server: Server) -> None:
    server.says("GET /schemas/ids/7", 200, {"schema": "message A {}", "schemaType": "PROTOBUF"})
    with server.client() as registry, pytest.raises(UnknownSchemaError, match="PROTOBUF"):
        registry.schema(7)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.Response(500, json={"error_code": 50001, "message": "store down"}),
        httpx.Response(503, text="try later"),
        httpx.Response(429, json={"error_code": 429, "message": "slow down"}),
        httpx.Response(401, json={"error_code": 401, "message": "who are you"}),
        # A proxy's page, or some other service: not the registry's own 404.
        httpx.Response(404, text="<html>not here</html>"),
        httpx.Response(200, text="<html>welcome</html>"),
        httpx.Response(200, json={"something": "else"}),
        httpx.Response(200, json=[1, 2]),
    ],
)
def test_no_answer_is_not_a_no(server: Server, answer: httpx.Response | httpx.HTTPError) -> None:
    server.answers["GET /schemas/ids/7"] = answer
    with server.client() as registry:
        for _ in range(2):
            with pytest.raises(RegistryUnavailableError, match=r"registry\.invalid"):
                registry.schema(7)

    # Nothing is remembered of it.
    assert len(server.asked) == 2


def test_registering_gives_the_id_and_is_remembered(server: Server) -> None:
    server.says("POST /subjects/fraud.predictions-value/versions", 200, {"id": 12})
    with server.client() as registry:
        assert registry.register("fraud.predictions-value", '"long"') == 12
        assert registry.register("fraud.predictions-value", '"long"') == 12
        assert registry.schema(12) == '"long"'

    assert server.bodies == [{"schema": '"long"'}]


def test_a_subject_is_one_part_of_the_path(server: Server) -> None:
    server.says("GET /subjects/a%2Fb%20c/versions/latest", 200, {"id": 3, "schema": '"int"'})
    with server.client() as registry:
        assert registry.latest("a/b c") == (3, '"int"')


def test_a_subject_without_versions_has_no_latest(server: Server) -> None:
    server.says("GET /subjects/s/versions/latest", 404, {"error_code": 40401, "message": "none"})
    with server.client() as registry:
        assert registry.latest("s") is None


def test_refusals_are_named(server: Server) -> None:
    question = "POST /subjects/s/versions"
    with server.client() as registry:
        server.says(question, 409, {"error_code": 409, "message": "b has no default"})
        with pytest.raises(IncompatibleSchemaError, match="b has no default"):
            registry.register("s", '"long"')
        server.says(question, 422, {"error_code": 42201, "message": "invalid schema"})
        with pytest.raises(SchemaRefused, match="invalid schema"):
            registry.register("s", "{")


def test_levels_are_set_and_read_per_subject(server: Server) -> None:
    server.says("PUT /config/s", 200, {"compatibility": "FULL_TRANSITIVE"})
    server.says("GET /config/s", 200, {"compatibilityLevel": "FULL_TRANSITIVE"})
    server.says("GET /config/t", 404, {"error_code": 40408, "message": "none"})
    with server.client() as registry:
        registry.set_compatibility("s", "FULL_TRANSITIVE")

        assert server.bodies == [{"compatibility": "FULL_TRANSITIVE"}]
        assert registry.compatibility("s") == "FULL_TRANSITIVE"
        assert registry.compatibility("t") is None


def test_a_check_says_why_a_schema_would_be_refused(server: Server) -> None:
    question = "POST /compatibility/subjects/s/versions/latest?verbose=true"
    with server.client() as registry:
        server.says(question, 200, {"is_compatible": False, "messages": ["b: no default"]})
        assert registry.check("s", '"long"') == ["b: no default"]
        server.says(question, 200, {"is_compatible": True})
        assert registry.check("s", '"long"') == []
        server.says(question, 404, {"error_code": 40401, "message": "none"})
        assert registry.check("s", '"long"') == []
