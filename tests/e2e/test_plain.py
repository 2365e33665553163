"""Port 80: redirects to hosts that are served, ACME challenges, hints; and nothing else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import Start
from tests.harness import Bot, Proxied, free_port
from tests.wire import Message, Wire

TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr_oA"
CHALLENGE = f"/.well-known/acme-challenge/{TOKEN}"


@pytest.fixture(scope="module")
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


@pytest.fixture(scope="module")
def webroot() -> Iterator[Path]:
    """A webroot as certbot leaves it: to be read by everybody."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        challenges = root / ".well-known/acme-challenge"
        challenges.mkdir(parents=True)
        for directory in (root, root / ".well-known", challenges):
            directory.chmod(0o755)
        (challenges / TOKEN).write_text(f"{TOKEN}.thumbprint")
        (root / "secret").write_text("secret")
        (challenges / "with.dot").write_text("secret")
        (challenges / "linked").symlink_to(root / "secret")
        (challenges / "directory").mkdir()
        os.mkfifo(challenges / "pipe")
        yield root


@pytest.fixture(scope="module")
def front(start_once: Start, bot: Bot, webroot: Path) -> Proxied:
    return start_once(
        bot.url,
        plain_listen=[f"127.0.0.1:{free_port()}"],
        acme_webroot=str(webroot),
        routes=[{"hosts": ["bot.example.com", "*.bots.example.com"]}],
    )


def ask(
    front: Proxied, path: str = "/", host: str = "bot.example.com", *fields: str, method: str = "GET"
) -> Message:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *fields, "", ""]
    with Wire(front.tcp(front.plain_port)) as client:
        client.send("\r\n".join(lines).encode("latin-1"))
        if method == "HEAD":
            return Message(client.read_until(b"\r\n\r\n"))
        return client.read_message()


# Redirects


@pytest.mark.parametrize("target", ["/", "/a/b?c=d&e=%2F%zz", "/%2e%2e/x?", "//double//slash", "/a;b=c"])
def test_a_host_we_serve_is_redirected_byte_for_byte(front: Proxied, target: str) -> None:
    for method in ("GET", "HEAD"):
        answer = ask(front, target, method=method)
        assert answer.status == 308
        assert answer.value("location") == f"https://bot.example.com{target}"


def test_who_came_by_port_80_finds_https_on_443(front: Proxied) -> None:
    """Also behind a container's port mapping, which hides from us what the world sees."""
    for host in ("bot.example.com:80", "BOT.Example.com", "bot.example.com."):
        assert ask(front, "/", host).value("location") == "https://bot.example.com/"


def test_who_came_by_another_port_is_sent_to_ours_whatever_it_said(front: Proxied) -> None:
    for port in (front.plain_port, front.port, 1):
        location = ask(front, "/", f"bot.example.com:{port}").value("location")
        assert location == f"https://bot.example.com:{front.port}/"
    assert ask(front, "/", "one.bots.example.com").status == 308


@pytest.mark.parametrize(
    "host",
    ["evil.example.org", "bot.example.com.evil.example.org", "127.0.0.1", "localhost", "bots.example.com"],
)
def test_another_host_is_421_and_never_redirected(front: Proxied, host: str) -> None:
    answer = ask(front, "/", host)
    assert answer.status == 421
    assert "location" not in answer
    assert host.encode() not in answer.body


def test_a_path_cannot_turn_into_another_host(front: Proxied) -> None:
    for target in (
        "//evil.example.org/",
        "/\\evil.example.org",
        "http://evil.example.org/",
        "/@evil.example.org",
    ):
        answer = ask(front, target)
        if "location" in answer:
            assert urlsplit(answer.value("location")).hostname == "bot.example.com"
        else:
            assert answer.status >= 400


def test_without_named_hosts_those_of_certificates_are_redirected(start: Start, bot: Bot) -> None:
    front = start(bot.url, plain_listen=[f"127.0.0.1:{free_port()}"])
    assert ask(front, "/x", "localhost").value("location") == "https://localhost/x"
    assert ask(front, "/x", "unknown.example.org").status == 421


def test_webhooks_in_clear_text_are_refused_with_a_hint(front: Proxied) -> None:
    answer = ask(front, "/telegram", "bot.example.com", "Content-Length: 0", method="POST")
    assert answer.status == 403
    assert b"https" in answer.body
    assert "location" not in answer


def test_a_posted_body_is_not_taken_for_the_next_request(front: Proxied, bot: Bot) -> None:
    inner = b"GET /inner HTTP/1.1\r\nHost: bot.example.com\r\n\r\n"
    with Wire(front.tcp(front.plain_port)) as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: bot.example.com\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner
        )
        assert client.read_message().status == 403
        assert client.read_to_end()[0] == b""
    assert not bot.requests


# ACME


def test_a_challenge_is_answered_for_any_host(front: Proxied) -> None:
    for host in ("bot.example.com", "not-yet-served.example.org", "localhost"):
        answer = ask(front, CHALLENGE, host)
        assert answer.status == 200
        assert answer.body == f"{TOKEN}.thumbprint".encode()
    assert ask(front, CHALLENGE, method="HEAD").value("content-length") == str(len(TOKEN) + 11)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "absent",
        "with.dot",
        "linked",
        "directory",
        "directory/",
        "pipe",
        "../../secret",
        "..%2f..%2fsecret",
        "%2e%2e/%2e%2e/secret",
        "....//secret",
        f"{TOKEN}%00",
        f"{TOKEN}?query",
        f"{TOKEN}/",
        "x" * 200,
    ],
)
def test_nothing_else_is_served_from_the_webroot(front: Proxied, name: str) -> None:
    answer = ask(front, f"/.well-known/acme-challenge/{name}")
    assert answer.status in (400, 404)
    assert b"secret" not in answer.body


def test_without_a_webroot_there_are_no_challenges(start: Start, bot: Bot) -> None:
    front = start(bot.url, plain_listen=[f"127.0.0.1:{free_port()}"])
    assert ask(front, CHALLENGE, "localhost").status == 404


# All of them


@pytest.mark.parametrize(
    ("path", "host", "method"),
    [
        ("/", "bot.example.com", "GET"),
        ("/", "evil.example.org", "GET"),
        (CHALLENGE, "bot.example.com", "GET"),
        (CHALLENGE + "x", "bot.example.com", "GET"),
        ("/", "bot.example.com", "POST"),
        ("/", "bot.example.com", "TRACE"),
    ],
)
def test_every_answer_has_the_security_headers_but_no_hsts(
    front: Proxied, path: str, host: str, method: str
) -> None:
    answer = ask(front, path, host, *(["Content-Length: 0"] if method == "POST" else []), method=method)
    assert answer.value("x-content-type-options") == "nosniff"
    assert answer.value("referrer-policy") == "no-referrer"
    assert "strict-transport-security" not in answer, "RFC 6797 7.2"
    assert "server" not in answer


def test_a_connection_is_kept_and_the_bot_never_asked(front: Proxied, bot: Bot) -> None:
    with Wire(front.tcp(front.plain_port)) as client:
        for _ in range(3):
            answer = client.request(b"GET / HTTP/1.1\r\nHost: bot.example.com\r\n\r\n")
            assert answer.status == 308
            assert "connection" not in answer
    assert bot.connections == 0
