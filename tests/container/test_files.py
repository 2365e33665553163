"""The files for containers agree with each other and with botproxy; `prove` builds and runs them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from botproxy.config.load import load_file, load_options
from tests.container import composition

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_image_is_not_root_and_listens_where_anybody_may() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert "USER 65532:65532" in final
    assert "EXPOSE 8443 8080" in final
    assert 'CMD ["botproxy", "health"]' in final
    assert "setcap" not in DOCKERFILE
    assert re.search(r"^ARG BASE=python:\S+-slim$", DOCKERFILE, re.MULTILINE)
    variables = dict(re.findall(r"(BOTPROXY_\w*LISTEN)='([^']+)'", final))
    ports = {name: yaml.safe_load(value)[0]["address"] for name, value in variables.items()}
    assert ports == {"BOTPROXY_LISTEN": ":8443", "BOTPROXY_PLAIN_LISTEN": ":8080"}


@pytest.mark.parametrize("name", ["botproxy", "bot", "certbot", "first-certificate"])
def test_every_service_is_locked_down(name: str) -> None:
    service = composition.read()["services"][name]
    assert (service["user"], service["read_only"]) == ("65532:65532", True)
    assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert not any("docker.sock" in volume for volume in service["volumes"])


def test_what_the_compose_file_tells_botproxy_is_a_configuration() -> None:
    service = composition.read()["services"]["botproxy"]
    config = load_options({}, environment=service["environment"])
    assert service["ports"] == ["443:8443", "80:8080"]
    assert config.certificates[0].chain == "/etc/letsencrypt/live/bot.example.com/fullchain.pem"
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace >= config.timeouts.drain + 10, "Docker kills before the drain is over"
    mounted = {volume.split(":")[1]: volume.split(":")[2:] for volume in service["volumes"]}
    assert mounted["/etc/letsencrypt"] == mounted[str(config.acme_webroot)] == ["ro"]


def test_every_key_has_a_variable() -> None:
    file = ROOT / "configs/full.yaml"
    variables = dict(_variables("BOTPROXY", yaml.safe_load(file.read_text())))
    assert "BOTPROXY_CERTIFICATES__0__CHAIN" in variables
    assert load_options({}, environment=variables) == load_file(str(file))


def _variables(name: str, value: Any) -> list[tuple[str, str]]:
    separator = "_" if name == "BOTPROXY" else "__"
    if isinstance(value, dict) and value:
        below = [_variables(f"{name}{separator}{key.upper()}", each) for key, each in value.items()]
    elif isinstance(value, list) and value:
        below = [_variables(f"{name}{separator}{index}", each) for index, each in enumerate(value)]
    else:
        return [(name, yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("\n..."))]
    return [each for some in below for each in some]
