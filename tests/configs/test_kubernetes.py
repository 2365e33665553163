"""What configs/kubernetes promises: valid manifests, no rights, ends in step, updates without loss."""

from __future__ import annotations

import http.client
import itertools
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from botproxy.config.load import load_file
from botproxy.server.crew import GRACE_AFTER_CUT
from botproxy.server.supervisor import GRACE_AFTER_DRAIN
from tests.certs import Authority
from tests.e2e.layouts import Kubernetes
from tests.e2e.served import served, wait_served
from tests.harness import Bot, Proxied, free_port, program, running
from tests.wire import OK, PATIENCE, Wire

CONFIGS = Path(__file__).parents[2] / "configs" / "kubernetes"
CHART = CONFIGS / "chart"
BESIDE = ("--set", "bot.image=bot:latest")
"""The chart with the bot in the same pod."""
UID = 65532
VERSIONS = ("1.30", "1.34", "1.37")

Documents = list[dict[str, Any]]


def plain(name: str) -> Documents:
    return list(yaml.safe_load_all((CONFIGS / name).read_text()))


def rendered(*options: str) -> Documents:
    """What helm makes of the chart."""
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("there is no helm")
    command = [helm, "template", "botproxy", str(CHART), *options]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def helm_or_not(name: str) -> Documents:
    return plain(name) if name.endswith(".yaml") else rendered(*(BESIDE if name == "chart beside" else ()))


@pytest.fixture(params=["proxy.yaml", "sidecar.yaml", "chart", "chart beside"])
def documents(request: pytest.FixtureRequest) -> Documents:
    return helm_or_not(request.param)


def one(documents: Documents, kind: str) -> dict[str, Any]:
    found = [each for each in documents if each["kind"] == kind]
    assert len(found) == 1
    return found[0]


def pod_of(documents: Documents) -> dict[str, Any]:
    return dict(one(documents, "Deployment")["spec"]["template"]["spec"])


def botproxy_of(pod: dict[str, Any]) -> dict[str, Any]:
    return dict(next(each for each in pod["containers"] if each["name"] == "botproxy"))


def configuration(documents: Documents, directory: Path) -> Any:
    """What is in the ConfigMap, as botproxy reads it."""
    file = directory / "botproxy.yaml"
    file.write_text(one(documents, "ConfigMap")["data"]["botproxy.yaml"])
    return load_file(str(file))


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_them(documents: Documents, version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    for document in [*documents, *plain("namespace.yaml")]:
        if document["apiVersion"] != "cert-manager.io/v1":
            validate(document, version, strict=True)


@pytest.mark.parametrize(("name", "options"), [("proxy.yaml", ()), ("sidecar.yaml", BESIDE)])
def test_the_chart_makes_what_the_manifests_say(name: str, options: tuple[str, ...]) -> None:
    def told(documents: Documents) -> dict[tuple[str, str], dict[str, Any]]:
        found = {(each["kind"], each["metadata"]["name"]): each for each in documents}
        found["Deployment", "botproxy"]["spec"]["template"]["metadata"].pop("annotations", None)
        files = found["ConfigMap", "botproxy"]["data"]
        files["botproxy.yaml"] = yaml.safe_load(files["botproxy.yaml"])
        return found

    assert told(rendered(*options)) == told(plain(name))


def test_a_changed_configuration_makes_new_pods() -> None:
    def mark(*options: str) -> str:
        metadata = one(rendered(*options), "Deployment")["spec"]["template"]["metadata"]
        return str(metadata["annotations"]["botproxy/configuration"])

    assert mark() == mark() != mark("--set", "configuration.limits.body=1MiB")


def test_its_configuration_is_right(documents: Documents, tmp_path: Path) -> None:
    config = configuration(documents, tmp_path)
    pod = pod_of(documents)
    container = botproxy_of(pod)
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert Path(config.certificates[0].key).parent == Path(mounts["certificates"]["mountPath"])
    assert Path(config.state_dir).parent == Path(mounts["state"]["mountPath"])
    assert container["args"][-1] == f"{mounts['config']['mountPath']}/botproxy.yaml"
    ports = {port["containerPort"] for port in container["ports"]}
    assert {int(each.address[1:]) for each in (*config.listen, *config.plain_listen)} == ports


def test_values_reach_the_configuration(tmp_path: Path) -> None:
    options = ("--set", "hosts={a.example,b.example}", "--set", "configuration.limits.body=1MiB")
    documents = rendered(*options, "--set", "drainSeconds=60", "--set", "issuer.name=")
    config = configuration(documents, tmp_path)
    assert (config.routes[0].hosts, config.limits.body) == (("a.example", "b.example"), 1 << 20)
    assert config.timeouts.drain == 60
    assert not [each for each in documents if each["kind"] == "Certificate"]


def test_the_secret_is_what_cert_manager_writes_and_is_mounted_as_a_directory(documents: Documents) -> None:
    pod = pod_of(documents)
    volume = next(each for each in pod["volumes"] if each["name"] == "certificates")
    assert volume["secret"]["secretName"] == one(documents, "Certificate")["spec"]["secretName"]
    # Owned by root, readable by the group that fsGroup makes ours.
    assert volume["secret"]["defaultMode"] == 0o440
    assert pod["securityContext"]["fsGroup"] == UID
    assert not [mount for mount in botproxy_of(pod)["volumeMounts"] if "subPath" in mount]


def test_the_pods_are_restricted(documents: Documents) -> None:
    """The rules of the Pod Security Standard `restricted`."""
    pod = pod_of(documents)
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == UID
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for volume in pod["volumes"]:
        assert len({"configMap", "secret", "emptyDir"} & set(volume)) == 1
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not [port for port in container.get("ports", ()) if "hostPort" in port]
    labels = plain("namespace.yaml")[0]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_end_of_a_pod_is_in_step_with_the_drain(documents: Documents, tmp_path: Path) -> None:
    pod = pod_of(documents)
    drain = configuration(documents, tmp_path).timeouts.drain
    delay = botproxy_of(pod)["lifecycle"]["preStop"]["sleep"]["seconds"]
    ended = delay + drain + GRACE_AFTER_DRAIN
    assert pod["terminationGracePeriodSeconds"] >= ended + GRACE_AFTER_CUT
    for container in pod["containers"]:
        if container["name"] == "bot":
            assert delay + drain < container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert (
                container["lifecycle"]["preStop"]["sleep"]["seconds"] < pod["terminationGracePeriodSeconds"]
            )


def test_everything_selects_the_same_pods(documents: Documents) -> None:
    deployment = one(documents, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert one(documents, "Service")["spec"]["selector"] == labels
    assert one(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    policies = [each for each in documents if each["kind"] == "NetworkPolicy"]
    assert policies[0]["spec"]["podSelector"]["matchLabels"] == labels
    assert deployment["spec"]["replicas"] > 1
    assert one(documents, "PodDisruptionBudget")["spec"]["maxUnavailable"] < deployment["spec"]["replicas"]


# Running


def pod(documents: Documents, directory: Path, to: str, **changed: Any) -> dict[str, Any]:
    """The configuration of the ConfigMap, at addresses and in directories of a test."""
    config = dict(yaml.safe_load(one(documents, "ConfigMap")["data"]["botproxy.yaml"]))
    return {
        **config,
        "user": "nobody",
        "listen": [f"127.0.0.1:{free_port()}"],
        "plain_listen": [f"127.0.0.1:{free_port()}"],
        "state_dir": str(directory / "state"),
        "upstreams": {"bot": {"url": to}},
        "routes": [{"hosts": ["localhost"]}],
        **changed,
    }


def healthy(front: Proxied) -> bool:
    """What the readiness probe asks."""
    command = [sys.executable, "-m", "botproxy", "health", "--config", str(front.directory / "botproxy.yaml")]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def secret(tmp_path: Path, ca: Authority) -> Kubernetes:
    return Kubernetes(tmp_path / "certificates", ca.issue("localhost"))


def test_a_renewed_secret_is_served_without_being_told(
    tmp_path: Path, ca: Authority, secret: Kubernetes
) -> None:
    with (
        Bot() as bot,
        running(pod(plain("proxy.yaml"), tmp_path, bot.url, certificates=[secret.entry]), tmp_path) as front,
    ):
        renewed = ca.issue("localhost")
        secret.renew(renewed)
        wait_served(front, renewed)
        assert served(front, "localhost", ca.trust()) == renewed.leaf


class Balancer:
    """HAProxy in TCP mode before several generations, told of endpoints like a Service is."""

    def __init__(self, directory: Path, ports: dict[str, int]) -> None:
        self.port = free_port()
        self._socket = directory / "haproxy.sock"
        servers = "\n".join(f"  server {name} 127.0.0.1:{port} disabled" for name, port in ports.items())
        file = directory / "haproxy.cfg"
        file.write_text(
            f"global\n  stats socket {self._socket} level admin\n  nbthread 1\n"
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
            f"listen front\n  bind 127.0.0.1:{self.port}\n{servers}\n"
        )
        self._process = subprocess.Popen([program("haproxy"), "-db", "-q", "-f", str(file)])
        deadline = time.monotonic() + PATIENCE
        while not self._socket.exists():
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def endpoint(self, name: str, state: str) -> None:
        """`ready`: new connections go there; `maint`: none do, and those that are open stay."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._socket))
            sock.sendall(f"set server front/{name} state {state}\n".encode())
            assert sock.recv(4096).strip() == b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)


class Clients:
    """Some come anew for every request, some keep their connection; every request must be answered.

    A kept connection may be closed at the moment at which its client sends. As HTTP clients do, that one
    then sends again on a new connection; the numbers of the requests tell whether any was done twice.
    """

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.answered: list[str] = []
        self.crossed = 0
        """Requests that met the end of a kept connection."""
        self._numbers = itertools.count()
        self.failures: list[str] = []
        self._port, self._context = port, context
        self._over = threading.Event()
        self._lock = threading.Lock()
        kinds: list[Callable[[], None]] = [self._anew, self._anew, self._keeping, self._slowly]
        self._threads = [threading.Thread(target=self._live, args=(kind,), daemon=True) for kind in kinds]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def wait_for(self, more: int) -> None:
        aim, deadline = len(self.answered) + more, time.monotonic() + PATIENCE
        while len(self.answered) < aim:
            assert time.monotonic() < deadline
            assert not self.failures, self.failures
            time.sleep(0.01)

    def _live(self, kind: Callable[[], None]) -> None:
        while not self._over.is_set():
            try:
                kind()
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failures.append(f"{kind.__name__}: {error!r}")

    def _connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("localhost", self._port, context=self._context, timeout=PATIENCE)

    def _ask(self, connection: http.client.HTTPSConnection, kind: str, number: int) -> bool:
        """One request; whether the connection may be used again."""
        connection.request("POST", path := f"/{kind}?{number}", body=b"{}")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"ok")
        with self._lock:
            self.answered.append(path)
        return not answer.will_close

    def _anew(self, kind: str = "anew") -> None:
        connection = self._connection()
        self._ask(connection, kind, next(self._numbers))
        connection.close()

    def _slowly(self) -> None:
        self._anew("slow")

    def _keeping(self) -> None:
        """One request after the other, as long as the server does not say that it is the last."""
        connection = self._connection()
        again = self._ask(connection, "keeping", next(self._numbers))
        while again and not self._over.is_set():
            number = next(self._numbers)
            try:
                again = self._ask(connection, "keeping", number)
            except (http.client.RemoteDisconnected, ConnectionError, ssl.SSLEOFError):
                self.crossed += 1
                connection.close()
                connection = self._connection()
                again = self._ask(connection, "keeping", number)
        connection.close()


def takes_its_time(bot: Bot) -> Callable[[Wire], None]:
    def behave(wire: Wire) -> None:
        while (message := wire.read_message()).head:
            bot.saw(message)
            if b"/slow" in message.head:
                time.sleep(1.5)  # longer than the time between the end of the endpoint and SIGTERM
            wire.send(OK)

    return behave


Generations = tuple[Bot, list[dict[str, Any]], list[Path]]


@pytest.fixture
def generations(tmp_path: Path, ca: Authority) -> Iterator[Generations]:
    """A bot, and configurations of pods, each with a directory of its own, and one Secret for all."""
    secret = Kubernetes(tmp_path / "certificates", ca.issue("localhost"))
    bot = Bot()
    bot.behave(takes_its_time(bot))
    directories = [tmp_path / f"pod{number}" for number in range(3)]
    for directory in directories:
        directory.mkdir()
    configs = [
        pod(plain("proxy.yaml"), directory, bot.url, certificates=[secret.entry], workers=1)
        for directory in directories
    ]
    yield bot, configs, directories
    bot.close()


def test_a_rolling_update_loses_no_request(generations: Generations, ca: Authority, tmp_path: Path) -> None:
    bot, configs, directories = generations
    ports = {f"pod{number}": int(each["listen"][0].rpartition(":")[2]) for number, each in enumerate(configs)}
    pods: list[Proxied] = []
    try:
        with Balancer(tmp_path, ports) as service:
            pods.append(Proxied(configs[0], directories[0]).wait_ready())
            assert healthy(pods[0])
            service.endpoint("pod0", "ready")
            with Clients(service.port, ca.trust()) as clients:
                clients.wait_for(50)
                for number in (1, 2):
                    # maxUnavailable: 0, so the new one comes first.
                    pods.append(Proxied(configs[number], directories[number]).wait_ready())
                    assert healthy(pods[number])
                    service.endpoint(f"pod{number}", "ready")
                    clients.wait_for(30)
                    # The old one ends: the endpoint goes while preStop waits, then SIGTERM.
                    time.sleep(0.3)
                    service.endpoint(f"pod{number - 1}", "maint")
                    time.sleep(0.7)
                    began = time.monotonic()
                    pods[number - 1].terminate()
                    assert pods[number - 1].wait(40) == 0
                    assert time.monotonic() - began < 25 + GRACE_AFTER_DRAIN
                    clients.wait_for(30)
            assert clients.failures == []
            assert len(clients.answered) > 200
            assert clients.crossed <= 2  # at most one for each end of a pod
            # Each request was done once, and each that was done was answered.
            assert sorted(clients.answered) == sorted(
                message.head.split()[1].decode() for message in bot.requests
            )
    finally:
        for each in pods:
            each.stop()
            assert not [line for line in each.log.join() if "Traceback" in line]


def test_it_is_not_ready_before_it_serves_nor_after_it_ended(tmp_path: Path, secret: Kubernetes) -> None:
    directory = tmp_path / "pod"
    directory.mkdir()
    with Bot() as bot:
        config = pod(plain("proxy.yaml"), directory, bot.url, certificates=[secret.entry])
        with running(config, directory) as front:
            assert healthy(front)
        assert not healthy(front)


def test_the_state_directory_in_an_empty_volume_is_its_own(tmp_path: Path, ca: Authority) -> None:
    """An emptyDir with fsGroup is writable for its group (2777), so botproxy makes a directory in it."""
    volume = tmp_path / "state"
    volume.mkdir()
    os.chmod(volume, 0o2777)
    secret = Kubernetes(tmp_path / "certificates", ca.issue("localhost"))
    with Bot() as bot:
        config = pod(plain("proxy.yaml"), tmp_path, bot.url, certificates=[secret.entry])
        with running({**config, "state_dir": str(volume / "botproxy")}, tmp_path):
            assert (volume / "botproxy").stat().st_mode & 0o777 == 0o700
