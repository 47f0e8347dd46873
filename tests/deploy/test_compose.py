"""Every variant of the compose files is valid, and says what the images and the README rely on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from tests.deploy.compose_files import merged

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {
    "gpu": ["docker-compose.yml"],
    "cpu": ["docker-compose.yml", "docker-compose.cpu.yml"],
    "emulated": ["docker-compose.yml", "docker-compose.emulated.yml"],
}


@pytest.fixture(params=sorted(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def compose(variant: str) -> dict[str, Any]:
    return merged(VARIANTS[variant], {})


def test_valid(compose: dict[str, Any]) -> None:
    # The parser knows the compose specification and refuses unknown keys and malformed values.
    parsed = PyCompose.from_yaml(yaml.safe_dump(compose))
    parsed.validate()
    workers = {"worker-0", "worker-1", "prefill-0", "decode-0"}
    assert set(parsed.service_names()) == {"controller", "model", "redis"} | workers


def test_the_check_would_notice() -> None:
    broken = merged(VARIANTS["gpu"], {})
    broken["services"]["redis"]["healthcheck"]["intervall"] = "3s"
    with pytest.raises(ValueError, match="intervall"):
        PyCompose.from_yaml(yaml.safe_dump(broken))


def test_every_server_has_a_health_check_and_dependencies_exist(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        if name != "model":
            assert service["healthcheck"]["test"], name
        for dependency, how in service.get("depends_on", {}).items():
            assert dependency in services
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[dependency]


def test_gpus_are_reserved_where_there_are_some(variant: str, compose: dict[str, Any]) -> None:
    for name in ("worker-0", "worker-1", "prefill-0", "decode-0"):
        reserved = "deploy" in compose["services"][name]
        assert reserved == (variant == "gpu")
    if variant == "gpu":
        devices = [
            compose["services"][name]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
            for name in ("worker-0", "worker-1", "prefill-0", "decode-0")
        ]
        assert devices == [["0"], ["1"], ["0"], ["1"]]


def test_disaggregated_profile_starts_a_pair_that_can_exchange_kv(compose: dict[str, Any]) -> None:
    services = compose["services"]
    started = {name for name, service in services.items() if service.get("profiles") == ["disaggregated"]}
    assert started == {"prefill-0", "decode-0"}
    for name in started:
        environment = services[name]["environment"]
        assert environment["SLOS_ROLE"] == name.split("-")[0]
        assert services[name]["image"] != "slos-serve/controller"  # it has no torch
        assert services[name]["ipc"] == "host"
        assert services[name]["ulimits"]["memlock"] == -1
        assert "NCCL_SOCKET_IFNAME" in environment


def test_images_are_built_from_files_that_exist(variant: str, compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        build = service.get("build")
        if build is None:
            assert name == "redis"
            continue
        dockerfile = (ROOT / build["dockerfile"]).read_text()
        if "target" in build:
            assert f"AS {build['target']}\n" in dockerfile
    images = {service["image"] for name, service in compose["services"].items() if name.startswith("worker")}
    expected = {"gpu": "slos-serve/worker:gpu", "cpu": "slos-serve/worker:cpu", "emulated": "slos-serve/controller"}
    assert images == {expected[variant]}
    assert compose["services"]["controller"]["image"] == "slos-serve/controller"


def test_variables_have_effect() -> None:
    settings = {"SLOS_MODELS": "/srv/models", "SLOS_MODEL": "my-model", "SLOS_HTTP_PORT": "80", "SLOS_GPU_1": "3"}
    services = merged(VARIANTS["gpu"], settings)["services"]
    assert services["controller"]["volumes"] == ["/srv/models:/models:ro"]
    assert "--model=my-model=/models/my-model" in services["controller"]["command"]
    assert services["controller"]["ports"][0] == "80:8000"
    assert services["worker-1"]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["3"]


def test_dockerfiles_copy_what_is_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= allowed
    assert {"pyproject.toml", "README.md", "deploy"} <= allowed
