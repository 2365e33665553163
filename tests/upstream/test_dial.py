"""One attempt to reach a bot."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from botproxy import errors
from botproxy.config.schema import Upstream
from botproxy.net.deadlines import Deadlines
from botproxy.upstream.dial import Dialer, verifications
from tests.certs import Authority
from tests.harness import free_port


def dial(url: str) -> None:
    """Dial once and close; raises what the dialer raises."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        dialer = Dialer(Upstream(url=url), None, 0.3, loop, Deadlines(loop))
        (await dialer.dial()).shut()

    asyncio.run(main())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_listening_bot_is_reached_by_address_and_by_name(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dial(f"http://{host}:{server.getsockname()[1]}")


def test_localhost_is_both_loopbacks() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        dial(f"http://localhost:{server.getsockname()[1]}")


def test_nobody_there_may_be_tried_again() -> None:
    with pytest.raises(errors.ConnectFailed) as caught:
        dial(f"http://127.0.0.1:{free_port()}")
    assert caught.value.retry is errors.Retry.YES


def test_a_missing_unix_socket_may_be_tried_again(tmp_path: Path) -> None:
    with pytest.raises(errors.ConnectFailed):
        dial(f"unix:{tmp_path / 'bot.sock'}")


def test_a_name_that_does_not_resolve_may_be_tried_again() -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        dial("http://no-such-bot.invalid:8000")
    assert isinstance(caught.value, errors.ConnectFailed | errors.ConnectTimeout)


def test_a_bot_that_does_not_accept_runs_into_the_timeout() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        crowd = [socket.socket() for _ in range(4)]  # they fill the queue; the next connect gets no answer
        try:
            for sock in crowd:
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
            with pytest.raises(errors.ConnectTimeout):
                dial(f"http://127.0.0.1:{port}")
        finally:
            for sock in crowd:
                sock.close()


def test_every_unusable_ca_is_named_before_anything_begins(tmp_path: Path) -> None:
    nothing = tmp_path / "empty.pem"
    nothing.write_text("")
    upstreams = {
        "one": Upstream(url="https://127.0.0.1:1", ca=str(tmp_path / "missing.pem")),
        "two": Upstream(url="https://127.0.0.1:1", ca=str(nothing)),
        "three": Upstream(url="http://127.0.0.1:1"),
    }
    with pytest.raises(errors.ConfigError) as caught:
        verifications(upstreams)
    assert [problem.path for problem in caught.value.problems] == ["upstreams.one.ca", "upstreams.two.ca"]
    assert "no such file" in caught.value.problems[0].says


def test_a_usable_ca_verifies(tmp_path: Path, ca: Authority) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(ca.certificate.public_bytes(Encoding.PEM))
    assert set(verifications({"bot": Upstream(url="https://127.0.0.1:1", ca=str(file))})) == {"bot"}
