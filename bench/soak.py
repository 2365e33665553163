"""Are descriptors and memory of a worker flat over many connections?

Run `python -m bench.soak [CONNECTIONS]` (50 000 by default, about two minutes). Every
connection is new: handshake, one request, orderly or abrupt end. Prints what the
worker holds after each tenth, and exits with 1 when it holds more at the end than
after the first fifth (warm-up) plus a small tolerance.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from tests import certs
from tests.harness import Bot, descriptors_of, free_port, rss_of, running

CLIENTS = 4
TOLERATED_BYTES = 2 * 1024 * 1024
TOLERATED_DESCRIPTORS = 4
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connect(port: int, ca: str, count: int) -> int:
    """Make `count` connections one after the other; how many were answered."""
    context = ssl.create_default_context(cafile=ca)
    answered = 0
    for number in range(count):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
            tls = context.wrap_socket(plain, server_hostname="localhost")
            tls.sendall(REQUEST)
            data = b""
            while not data.endswith(b"\r\n\r\nok"):
                more = tls.recv(4096)
                if not more:
                    break
                data += more
            answered += data.startswith(b"HTTP/1.1 200 ")
            if number % 3 == 0:  # abrupt: a reset in the middle of everything
                tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            elif number % 3 == 1:
                try:
                    tls.unwrap()
                except (ssl.SSLError, OSError):
                    pass  # the proxy may close at the same moment
            tls.close()
    return answered


def main(total: int) -> int:
    authority = certs.root()
    with tempfile.TemporaryDirectory() as name, Bot() as bot, ProcessPoolExecutor(CLIENTS) as pool:
        directory = Path(name)
        pair = authority.issue("localhost").write(directory)
        ca = directory / "ca.pem"
        ca.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
        config = {
            "listen": [f"127.0.0.1:{free_port()}"],
            "plain_listen": [],
            "workers": 1,
            "certificates": [{"chain": pair.chain, "key": pair.key}],
            "upstreams": {"bot": {"url": bot.url}},
            "state_dir": name,
        }
        with running(config, directory) as proxied:
            (worker,) = proxied.workers()
            step = total // 10
            samples = []
            for tenth in range(1, 11):
                shares = [step // CLIENTS] * CLIENTS
                jobs = [pool.submit(connect, proxied.port, str(ca), share) for share in shares]
                answered = sum(job.result() for job in jobs)
                if answered != sum(shares):
                    print(f"{sum(shares) - answered} connections were not answered")
                    return 1
                samples.append((descriptors_of(worker), rss_of(worker)))
                print(
                    f"{tenth * sum(shares):>7} connections: {samples[-1][0]} descriptors, "
                    f"{samples[-1][1] / 1024**2:.1f} MiB",
                    flush=True,
                )
    (descriptors, memory), (last_descriptors, last_memory) = samples[1], samples[-1]
    flat = last_descriptors <= descriptors + TOLERATED_DESCRIPTORS and last_memory <= memory + TOLERATED_BYTES
    print("flat" if flat else "not flat")
    return 0 if flat else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000))
