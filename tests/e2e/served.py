"""What clients get: certificates asked for over the wire, and a crowd that never stops asking."""

from __future__ import annotations

import ssl
import threading
import time
from typing import Self

from cryptography import x509

from botproxy.keeper.lineage import serial_text
from tests.certs import Issued
from tests.harness import Proxied
from tests.wire import PATIENCE, get


def serial(issued: Issued) -> str:
    return serial_text(issued.leaf.serial_number)


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

    def __init__(
        self, front: Proxied, *contexts: ssl.SSLContext, name: str = "localhost", each: int = 2
    ) -> None:
        """`each`: clients of every context."""
        self.failures: list[str] = []
        self._front = front
        self._name = name
        self._seen: list[tuple[float, bytes]] = []
        self._changed = threading.Condition()
        self._over = False
        self._threads = [
            threading.Thread(target=self._come, args=(context,), daemon=True)
            for context in contexts
            for _ in range(each)
        ]

    def serials(self, since: float = 0.0) -> set[str]:
        """Of the certificates shown to those who came after `since`, seconds since the epoch."""
        with self._changed:
            shown = {certificate for began, certificate in self._seen if began > since}
        return {serial_text(x509.load_der_x509_certificate(each).serial_number) for each in shown}

    def wait_for(self, count: int, since: float = 0.0) -> None:
        """Until that many more have come after `since`."""
        with self._changed:
            first = len(self._seen)

            def came() -> bool:
                return bool(self.failures) or sum(began > since for began, _ in self._seen[first:]) >= count

            assert self._changed.wait_for(came, PATIENCE), "they do not get through"
        assert not self.failures, self.failures

    def _come(self, context: ssl.SSLContext) -> None:
        while not self._over:
            began = time.time()
            try:
                certificate = self._ask(context)
            except (OSError, AssertionError, ValueError) as error:
                with self._changed:
                    self.failures.append(f"{time.time():.3f} {error!r}")
                    self._changed.notify_all()
            else:
                with self._changed:
                    self._seen.append((began, certificate))
                    self._changed.notify_all()

    def _ask(self, context: ssl.SSLContext) -> bytes:
        with self._front.connect(context, self._name) as client:
            assert isinstance(client.sock, ssl.SSLSocket)
            certificate = client.sock.getpeercert(binary_form=True)
            assert certificate is not None
            client.send(f"GET / HTTP/1.1\r\nHost: {self._name}\r\nConnection: close\r\n\r\n".encode())
            answer = client.read_message()
            assert (answer.status, answer.body, answer.complete) == (200, b"ok", True)
            assert client.read_to_end() == (b"", True)
        return certificate

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for thread in self._threads:
            thread.join(PATIENCE)


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
