"""docker-compose.yml and the Dockerfile, as far as they can be judged without Docker."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from compose_file import REPOSITORY, interpolated, load, seconds

from headrace.cli.main import COMMANDS
from headrace.runtime.dev.jars import pinned
from headrace.runtime.dev.kafka import _PROPERTIES
from headrace.runtime.settings import ENVIRONMENT_PREFIX, load_settings

SERVICES = load()["services"]
OURS = {name: one for name, one in SERVICES.items() if one["image"].startswith("headrace:")}
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
STAGES = re.split(r"^(?=FROM )", DOCKERFILE, flags=re.MULTILINE)[1:]


def specification() -> dict:
    """Return the compose specification's schema, which check-jsonschema carries."""
    found = importlib.util.find_spec("check_jsonschema")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "builtin_schemas" / "vendor"
    return json.loads((folder / "compose-spec.json").read_text(encoding="utf-8"))


def faults(content) -> list[str]:
    validator = jsonschema.Draft202012Validator(specification())
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)]


def instructions(stage: str) -> list[tuple[str, str]]:
    """Return a stage's instructions and their arguments, with continued lines joined."""
    lines = [line for line in stage.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


# --- The file ---------------------------------------------------------------------------------


def test_it_follows_the_compose_specification():
    assert faults(load()) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("services", "worker", "healtcheck"), {"test": "true"}),
        (("services", "worker", "healthcheck", "interval"), 5),
        (("services", "kafka", "depends_on"), {"redis": {"condition": "healthy"}}),
        (("volumes", "kafka"), "here"),
    ],
)
def test_the_specification_would_refuse_a_mistake(place, value):
    content = load()
    part = content
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value

    assert faults(content)


def test_variables_have_defaults_that_a_user_may_replace():
    assert interpolated("${A:-x}:${B:-/y/z}", {"A": "1"}) == "1:/y/z"
    text = (REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8")
    # One without a default would be empty, and Compose only warns of that.
    assert re.findall(r"\$\{\w+\}|\$\w", text) == []


def test_images_are_pinned_and_kafka_is_the_embedded_one():
    tags = {name: one["image"].partition(":")[2] for name, one in SERVICES.items()}

    assert all(re.match(r"v?\d+\.\d", tag) for tag in tags.values()), tags
    kafka = next(
        re.search(r"kafka-server/([\d.]+)/", jar.path)
        for jar in pinned()
        if "kafka-server/" in jar.path
    )
    assert tags["kafka"] == kafka[1]


def test_the_broker_is_set_up_like_the_embedded_one():
    given = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in SERVICES["kafka"]["environment"].items()
    }
    both = set(given) & set(_PROPERTIES)

    # Addresses and the sizes of what one laptop holds are each one's own.
    assert {name: given[name] for name in both} == {name: _PROPERTIES[name] for name in both}
    assert set(_PROPERTIES) - both == {
        "num.partitions",
        "offsets.topic.num.partitions",
        "transaction.state.log.num.partitions",
        "broker.session.timeout.ms",
        "broker.heartbeat.interval.ms",
        "log.cleaner.dedupe.buffer.size",
    }


def test_nothing_secret_stands_in_it_and_nothing_is_open_to_the_network():
    for name, one in SERVICES.items():
        for variable in one.get("environment", {}):
            assert not re.search(r"PASSWORD|SECRET|TOKEN|API_KEY", variable), (name, variable)
        for port in one.get("ports", []):
            assert port.startswith("127.0.0.1:"), (name, port)
    published = [port.split(":")[1] for one in SERVICES.values() for port in one.get("ports", [])]
    assert len(published) == len(set(published))


def test_every_service_is_held_in_its_bounds():
    for name, one in SERVICES.items():
        assert one["cap_drop"] == ["ALL"], name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert one["deploy"]["resources"]["limits"]["memory"], name
        assert one["logging"]["options"]["max-size"], name
        # Kafka's image writes its settings below its own folder at each start.
        assert one.get("read_only", False) == (name != "kafka"), name


def test_what_runs_on_is_checked_and_what_ends_is_waited_for():
    for name, one in SERVICES.items():
        runs_on = one["restart"] == "unless-stopped"
        assert runs_on == ("healthcheck" in one), name
        for needed, how in one.get("depends_on", {}).items():
            expected = (
                "service_healthy"
                if "healthcheck" in SERVICES[needed]
                else "service_completed_successfully"
            )
            assert how["condition"] == expected, (name, needed)
    assert {name for name, one in SERVICES.items() if one["restart"] != "unless-stopped"} == {
        "apply",
        "tools",
    }


def test_a_health_check_gives_up_after_its_own_limits():
    for name, one in SERVICES.items():
        if check := one.get("healthcheck"):
            inner = re.search(r"timeout=(\d+)", str(check["test"]))
            assert inner is None or int(inner[1]) < seconds(check["timeout"]), name
            assert seconds(check["start_interval"]) < seconds(check["interval"]), name


def test_volumes_are_declared_and_used_and_mounted_files_exist():
    used = set()
    for one in SERVICES.values():
        for mount in one.get("volumes", []):
            source, _, rest = mount.partition(":")
            if source.startswith("."):
                assert (REPOSITORY / source).is_dir(), source
                assert rest.endswith(":ro"), mount
            else:
                used.add(source)
    assert used == set(load()["volumes"])


# --- Our services -----------------------------------------------------------------------------


def test_our_commands_exist():
    for name, one in OURS.items():
        words = one["command"]
        if words[0] == "headrace":
            assert words[1] in COMMANDS or words[1] == "--help", name
        else:
            assert words[:3] == ["python", "-P", "-m"], name
            assert importlib.util.find_spec(words[3]) is not None, name


@pytest.mark.parametrize("name", [name for name, one in OURS.items() if "environment" in one])
def test_our_settings_are_settings(name, tmp_path, monkeypatch):
    for variable, value in SERVICES[name]["environment"].items():
        assert variable.startswith(ENVIRONMENT_PREFIX)
        monkeypatch.setenv(variable, value)
    (tmp_path / "headrace.yaml").write_text("project: any\n")

    settings = load_settings(tmp_path)

    # All that is written goes to the one volume that is for it.
    (volume,) = {m.split(":")[1] for m in SERVICES[name]["volumes"] if m.startswith("state:")}
    for folder in (settings.state_folder, settings.registry_folder, settings.lake.folder):
        assert str(folder).startswith(f"{volume}/")
    # Addresses are services of the file, at ports at which they listen.
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert (
        "PLAINTEXT://kafka:9092" in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    )
    assert settings.registry.url == "http://registry:8081"
    assert SERVICES["registry"]["command"][-4:-2] == ["--port", "8081"]
    assert settings.redis.url == "redis://redis:6379/0"


def test_prometheus_scrapes_where_our_services_show_metrics():
    config = yaml.safe_load((REPOSITORY / "deploy/prometheus/prometheus.yml").read_text())
    scraped = {
        name: found["port"]
        for job in config["scrape_configs"]
        for found in job["dns_sd_configs"]
        for name in found["names"]
    }
    shown = {
        name: int(one["command"][one["command"].index("--metrics-port") + 1])
        for name, one in OURS.items()
        if "--metrics-port" in one["command"]
    }

    assert scraped == shown
    for name, port in shown.items():
        assert f"http://127.0.0.1:{port}/ready" in SERVICES[name]["healthcheck"]["test"][-1]
        assert "0.0.0.0" in SERVICES[name]["command"]  # noqa: S104 - of a container.
    for file in config["rule_files"]:
        assert (REPOSITORY / "deploy" / "prometheus" / file).is_file()


def test_the_operators_page_names_every_service_and_port(repository):
    page = (repository / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", page, flags=re.MULTILINE))
    published = {
        name: ", ".join(port.split(":")[1] for port in one.get("ports", [])) or "–"
        for name, one in SERVICES.items()
    }

    assert {name: cell.strip() for name, cell in rows.items() if name in published} == published


# --- The image --------------------------------------------------------------------------------


def test_it_starts_from_pinned_images_and_runs_as_nobody_in_particular():
    sources = re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)
    users = [argument for name, argument in instructions(STAGES[-1]) if name == "USER"]

    assert len(STAGES) == 2
    assert all(re.fullmatch(r"python:3\.11-slim-\w+", source) for source in sources), sources
    # A number: Kubernetes cannot see that a name is not root.
    assert users == ["10001:10001"]


def test_everything_that_it_installs_is_in_the_lock_by_hash():
    runs = [a for stage in STAGES for name, a in instructions(stage) if name == "RUN"]
    installs = [
        step for run in runs for step in run.split("&&") if re.search(r"\bpip install\b", step)
    ]

    assert len(installs) == 3
    for step in installs:
        assert "--require-hashes" in step or step.split()[-1] == "dist/*.whl", step
    assert not [run for run in runs if "index-url" in run or "curl" in run or "wget" in run]


def test_the_awk_of_the_build_takes_two_tools_with_their_hashes_from_the_lock():
    (program,) = re.findall(r"awk '([^']+)' requirements\.lock", DOCKERFILE)
    taken = subprocess.run(
        [shutil.which("awk"), program, "requirements.lock"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert re.findall(r"^([\w-]+)==", taken, flags=re.MULTILINE) == ["setuptools", "uv"]
    assert taken.count("--hash=sha256:") > 2


def copied() -> list[str]:
    """Return the paths that the image takes from the repository."""
    found = []
    for stage in STAGES:
        for name, argument in instructions(stage):
            if name == "COPY" and "--from" not in argument:
                found += [word for word in argument.split() if not word.startswith("--")][:-1]
    return found


def test_what_it_copies_exists_and_is_let_through_and_nothing_else_is():
    ignore = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()

    for path in copied():
        assert (REPOSITORY / path).exists(), path
    assert {line[1:] for line in ignore if line.startswith("!")} == set(copied())
    assert "*" in ignore


def test_every_room_goes_into_the_image():
    linked = {path.name for path in (REPOSITORY / "headrace").iterdir() if path.is_symlink()}

    assert linked <= set(copied())


def test_its_entry_point_is_put_where_the_path_leads():
    last = dict(instructions(STAGES[-1]))
    (program,) = json.loads(last["ENTRYPOINT"])
    places = [a.split()[-2:] for n, a in instructions(STAGES[0]) if n == "COPY" and program in a]

    ((source, target),) = places
    assert target == f"/app/bin/{program}"
    assert "/app/bin:" in last["ENV"]
    script = REPOSITORY / source
    assert script.read_text(encoding="utf-8").startswith("#!/bin/sh\n")
    assert json.loads(last["CMD"])[0] == "headrace"


def test_the_entry_point_copies_the_kernels_once_and_runs_what_it_is_told(tmp_path):
    kernels, cache = tmp_path / "kernels", tmp_path / "cache"
    (kernels / "rows").mkdir(parents=True)
    (kernels / "rows" / "apply.nbi").write_text("compiled")
    environment = {
        "PATH": "/usr/bin:/bin",
        "HEADRACE_KERNELS": str(kernels),
        "NUMBA_CACHE_DIR": str(cache),
    }
    command = [
        "sh",
        str(REPOSITORY / "deploy" / "entrypoint.sh"),
        "sh",
        "-c",
        'echo "$0 $1"; exit 7',
    ]

    for _ in range(2):
        done = subprocess.run(
            [*command, "a b", "c"], env=environment, capture_output=True, text=True, check=False
        )

        assert (done.returncode, done.stdout, done.stderr) == (7, "a b c\n", "")
    assert {str(path.relative_to(cache)) for path in cache.rglob("*")} == {
        "rows",
        "rows/apply.nbi",
    }


def test_kernels_are_compiled_for_the_cpu_that_the_image_asks_for():
    build, last = (instructions(stage) for stage in STAGES)
    asked = [a for n, a in itertools.chain(build, last) if n == "ENV" and "NUMBA_CPU_NAME" in a]

    assert [re.search(r"NUMBA_CPU_NAME=(\w+)", one)[1] for one in asked] == ["generic", "generic"]
    (warm,) = [a for n, a in build if n == "RUN" and "warm_kernels.py" in a]
    assert "NUMBA_CACHE_DIR=/app/kernels" in warm


@pytest.mark.slow
def test_the_build_s_warming_calls_every_kernel():
    done = subprocess.run(
        [sys.executable, "-P", "deploy/warm_kernels.py", "examples/fraud"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert re.match(r"kernels are warm: [1-9]\d* records, 5 trees", done.stdout)
