"""Pebble, the ACME server for tests of Let's Encrypt, and the DNS that it asks.

Every name leads to 127.0.0.1. Challenges are validated for real, over HTTP, each time and
without pauses. The CA is new at every start, and no system trusts it.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from cryptography import x509

from tests import certs
from tests.harness import free_port
from tests.wire import PATIENCE

SETTINGS = {
    "PEBBLE_VA_NOSLEEP": "1",
    # certbot tries a request again once, so that by default a run of some dozen requests fails now and then.
    "PEBBLE_WFE_NONCEREJECT": "0",
    # Every renewal has to answer a challenge.
    "PEBBLE_AUTHZREUSE": "0",
}


class Pebble:
    """A running one."""

    def __init__(
        self, directory: str, api_ca: Path, root: x509.Certificate, issuer: x509.Certificate
    ) -> None:
        """`issuer`: the intermediate that signs what is issued."""
        self.directory = directory
        """URL, for `certbot --server`."""
        self.api_ca = api_ca
        """File with the CA of the API itself, for REQUESTS_CA_BUNDLE."""
        self.root = root
        self.issuer = issuer

    def trust(self) -> ssl.SSLContext:
        """A client that trusts the root of what is issued and nothing else."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=certs.pem(self.root).decode())
        return context


@contextmanager
def issuing(programs: Sequence[str], directory: Path, http_port: int) -> Iterator[Pebble]:
    """Pebble with its files in `directory`, looking for challenges on `http_port` of this machine.

    `programs`: paths of `pebble` and `pebble-challtestsrv`.
    """
    pebble, dns = programs
    directory.mkdir()
    api, management, dns_port, dns_management = (f"127.0.0.1:{free_port()}" for _ in range(4))
    authority = certs.root("Pebble API")
    api_ca = directory / "api-ca.pem"
    api_ca.write_bytes(certs.pem(authority.certificate))
    pair = authority.issue("localhost").write(directory, "api")
    config = directory / "pebble.json"
    settings = {
        "listenAddress": api,
        "managementListenAddress": management,
        "certificate": pair.chain,
        "privateKey": pair.key,
        "httpPort": http_port,
        "tlsPort": free_port(),
    }
    config.write_text(json.dumps({"pebble": settings}))
    resolve = ["-dns01", dns_port, "-management", dns_management, "-defaultIPv6", ""]
    answer_nothing = ["-http01", "", "-https01", "", "-tlsalpn01", ""]
    trusted = ssl.create_default_context(cafile=str(api_ca))
    with ExitStack() as stack:
        resolver = stack.enter_context(_started([dns, *resolve, *answer_nothing], directory / "dns.log", {}))
        _wait_listening(dns_port, resolver)
        command = [pebble, "-config", str(config), "-dnsserver", dns_port]
        process = stack.enter_context(_started(command, directory / "pebble.log", SETTINGS))
        _wait_listening(api, process)
        _wait_listening(management, process)
        root, issuer = (
            x509.load_pem_x509_certificate(
                httpx.get(_url(management, f"/{which}/0"), verify=trusted).raise_for_status().content
            )
            for which in ("roots", "intermediates")
        )
        yield Pebble(_url(api, "/dir"), api_ca, root, issuer)


# Private


@contextmanager
def _started(command: list[str], log: Path, settings: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PEBBLE_")}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**env, **settings}
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _wait_listening(address: str, process: subprocess.Popen[bytes]) -> None:
    """Until `process` accepts connections there."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((host, int(port)), PATIENCE).close()
            return
        except ConnectionRefusedError:
            assert process.poll() is None, "it ended"
            assert time.monotonic() < deadline, f"nobody listens at {address}"
            time.sleep(0.02)


def _url(address: str, path: str) -> str:
    return f"https://localhost:{address.rpartition(':')[2]}{path}"
