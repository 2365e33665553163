"""What clients get: certificates asked for over the wire, and a crowd that never stops asking."""

from __future__ import annotations

import ssl
import threading
from collections import Counter
from typing import Self

from cryptography import x509

from tests.certs import Issued
from tests.harness import Proxied
from tests.wire import get


def serial(issued: Issued) -> str:
    return f"{issued.leaf.serial_number:x}"


def wait_served(front: Proxied, issued: Issued, since: int = 0) -> None:
    """Until the log says that every worker serves it."""
    front.log.wait_for(lambda line: "a new certificate is served" in line and serial(issued) in line, since)


def served(front: Proxied, name: str, context: ssl.SSLContext) -> x509.Certificate:
    """The certificate that a client gets that asks for `name`."""
    with front.connect(context, name) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        der = client.sock.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


class Crowd:
    """Clients that make one verified handshake and request after the other; every failure is kept."""

    def __init__(self, front: Proxied, context: ssl.SSLContext, clients: int = 3) -> None:
        self.failures: list[str] = []
        self.serials: Counter[str] = Counter()
        self._front = front
        self._context = context
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    @property
    def answered(self) -> int:
        return sum(self.serials.values())

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                with self._front.connect(self._context) as client:
                    assert isinstance(client.sock, ssl.SSLSocket)
                    der = client.sock.getpeercert(binary_form=True)
                    assert der is not None
                    answer = client.request(get())
                    assert answer.status == 200, answer
                self.serials[f"{x509.load_der_x509_certificate(der).serial_number:x}"] += 1
            except (OSError, AssertionError, ValueError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def session_of(front: Proxied, context: ssl.SSLContext) -> ssl.SSLSession:
    """A session that can be resumed."""
    with front.connect(context) as client:
        assert client.request(get()).status == 200  # with it comes the ticket of TLS 1.3
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.sock.session is not None
        return client.sock.session


def resumes(front: Proxied, context: ssl.SSLContext, session: ssl.SSLSession) -> bool:
    """Whether a new connection resumes `session`; it is answered either way."""
    with context.wrap_socket(front.tcp(), server_hostname="localhost", session=session) as tls:
        tls.sendall(get("/", "Connection: close"))
        assert tls.recv(65536).startswith(b"HTTP/1.1 200 ")
        return bool(tls.session_reused)
