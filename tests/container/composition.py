"""The compose file: whether it is one, and whether its services do what it says.

The services run with the users, commands, variables and mounts that the file gives them.
certbot is the machine's own, with the service's uid and command but outside of a container,
and Pebble stands in for Let's Encrypt; without the two, and PyYAML, the claims fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.container.runtime import PATIENCE, Container
from tests.container.scene import NAME, OWNER, Scene

FOLDER = Path(__file__).parents[2] / "configs/container"
FILE = FOLDER / "compose.yaml"
_API, _DNS = 14000, 8053
DOCKER_GRACE = 10.0


def is_valid(scene: Scene) -> str:
    """Judged by docker-compose itself where it is installed."""
    command = next((each for each in (["docker", "compose"], ["docker-compose"]) if _answers(each)), None)
    assert command, "neither docker compose nor docker-compose is installed: apt install docker-compose"
    done = subprocess.run(
        [*command, "-f", str(FILE), "config", "--quiet"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    services = read()["services"]
    for name, service in services.items():
        assert service["user"] == "65532:65532", name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not any("docker.sock" in each for each in service.get("volumes", ())), name
    return f"{' '.join(command)} takes it; every one of {len(services)} services is locked down"


def works(scene: Scene) -> str:
    """First certificate, start, webhook, renewal."""
    services = read()["services"]
    folders = {name: scene.directory / f"compose-{name}" for name in ("letsencrypt", "acme", "work")}
    scene.directory.chmod(0o755)
    for folder in folders.values():
        folder.mkdir()
        os.chown(folder, OWNER, OWNER)
    with scene.bot_away(), _pebble(scene, folders["letsencrypt"]) as trusted:
        assert _certbot(services["first-certificate"], folders, trusted).wait(60) == 0
        live = folders["letsencrypt"] / "live" / NAME
        key = live.joinpath("privkey.pem").resolve()
        assert (key.stat().st_mode & 0o777, key.stat().st_uid) == (0o600, OWNER)
        _start(scene, services["bot"], folders)
        botproxy = _start(scene, services["botproxy"], folders).until_healthy()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # its root is new at every start
        scene.trust = context
        answer = scene.ask("/telegram", body=b"{}")
        assert answer.status == 200, answer
        assert json.loads(answer.body)["bytes"] == 2
        before = answer.certificate
        sidecar = _certbot(services["certbot"], folders, trusted)
        begun = time.monotonic()
        try:
            while scene.ask("/telegram", body=b"{}").certificate == before:
                assert time.monotonic() < begun + 60, botproxy.says()
                time.sleep(0.5)
        finally:
            begun = time.monotonic()
            sidecar.terminate()
            sidecar.wait(DOCKER_GRACE)
            took = time.monotonic() - begun
            with contextlib.suppress(ProcessLookupError):
                os.killpg(sidecar.pid, signal.SIGKILL)  # outside of a container its sleep would go on
        scene.trust = None
    return (
        f"a first certificate, its key 0600 of uid {OWNER}; a webhook reached the bot; the sidecar's "
        f"renewal came through 8080 and was served without a restart; the sidecar ends in {took:.1f} s"
    )


def read(name: str = NAME) -> dict[str, Any]:
    """The file as compose understands it, for one domain."""
    import yaml  # the machine's: apt install python3-yaml

    text = re.sub(
        r"\$\{(\w+):-([^}]*)\}", lambda found: {"DOMAIN": name}.get(found[1], found[2]), FILE.read_text()
    )
    content: dict[str, Any] = yaml.safe_load(text.replace("$$", "$"))
    return content


# Private


def _start(scene: Scene, service: dict[str, Any], folders: dict[str, Path]) -> Container:
    hosts = scene.directory / "hosts"
    hosts.write_text("127.0.0.1 localhost bot\n")
    mounts = {"/etc/hosts": hosts}
    writable: dict[str, Path] = {}
    for volume in service.get("volumes", ()):
        source, place, *mode = volume.split(":")
        if source.startswith("./"):
            path = folders.get(source[2:], FOLDER / source[2:])
            (mounts if mode == ["ro"] else writable)[place] = path
    return scene.start(
        command=service.get("command"),
        entrypoint=None if service["image"] == "botproxy" else [],  # Python's image has none
        user=service["user"],
        env=service.get("environment", {}),
        mounts=mounts,
        writable=writable,
        tmpfs=service.get("tmpfs", ()),
    )


def _certbot(service: dict[str, Any], folders: dict[str, Path], trusted: Path) -> subprocess.Popen[bytes]:
    """The machine's certbot with the service's uid and command, its folders in the place of the mounts."""
    assert shutil.which("certbot"), "missing: apt install certbot"
    command = service["command"]
    words = shlex.split(command) if isinstance(command, str) else command
    entrypoint = service.get("entrypoint", ["certbot"])
    work = folders["work"]
    there = {"/var/www/acme": folders["acme"], "/tmp/work": work / "work", "/tmp/logs": work / "logs"}
    line = [*entrypoint, *words]
    for place, folder in there.items():
        line = [word.replace(place, str(folder)) for word in line]
    uid, _, gid = service["user"].partition(":")
    drop = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs"]
    drop += ["--inh-caps=-all", "--bounding-set=-all"]
    bin_path = "/usr/sbin:/usr/bin:/sbin:/bin"
    env = {"PATH": bin_path, "HOME": str(work), "REQUESTS_CA_BUNDLE": str(trusted)}
    letsencrypt = folders["letsencrypt"]
    told = ["--config-dir", str(letsencrypt), "--config", str(letsencrypt / "cli.ini")]
    if line[0] == "certbot":
        line += told
    else:
        line = [word.replace("certbot renew", " ".join(["certbot renew", *told])) for word in line]
    return subprocess.Popen([*drop, *line], env=env, cwd=work, stdin=subprocess.DEVNULL, process_group=0)


@contextlib.contextmanager
def _pebble(scene: Scene, letsencrypt: Path) -> Iterator[Path]:
    """An ACME server that looks for challenges where port 80 of the file leads; certbot is told of it by
    cli.ini, and that everything is due. Yields the file with the CA of its API."""
    for program in ("pebble", "pebble-challtestsrv"):
        assert shutil.which(program), "missing: apt install pebble"
    folder = scene.directory / "pebble"
    scene.issue(folder, 0, "localhost")
    pair = {"certificate": str(folder / "fullchain.pem"), "privateKey": str(folder / "privkey.pem")}
    ports = {"httpPort": 8080, "tlsPort": 5001}
    address = {"listenAddress": f"127.0.0.1:{_API}", "managementListenAddress": "127.0.0.1:15000"}
    settings = folder / "pebble.json"
    settings.write_text(json.dumps({"pebble": pair | ports | address}))
    trusted = folder / "root.pem"
    trusted.chmod(0o644)
    letsencrypt.joinpath("cli.ini").write_text(
        f"server = https://localhost:{_API}/dir\nrenew-by-default = true\nno-random-sleep-on-renew = true\n"
    )
    silent = ["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]
    commands = (
        ["pebble-challtestsrv", "-dns01", f"127.0.0.1:{_DNS}", *silent],
        ["pebble", "-config", str(settings), "-dnsserver", f"127.0.0.1:{_DNS}"],
    )
    env = os.environ | {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("wb"))
        for command in commands:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        _wait(_API)
        yield trusted


def _wait(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        assert time.monotonic() < deadline, f"nobody listens on {port}"
        time.sleep(0.1)


def _answers(command: list[str]) -> bool:
    try:
        return subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
