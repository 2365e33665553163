"""A certificate keeps its name, which two never share and which is safe as that of a directory."""

from __future__ import annotations

import re
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botproxy.config.schema import Certificate
from botproxy.keeper.naming import names_of


def entry(chain: str, name: str | None = None) -> Certificate:
    return Certificate(chain=chain, key="/etc/ssl/private/key.pem", name=name)


@pytest.mark.parametrize(
    ("chain", "name"),
    [
        ("/etc/letsencrypt/live/bot.example.com/fullchain.pem", "bot.example.com"),
        ("/etc/letsencrypt/live/bot.example.com-0001/cert.pem", "bot.example.com-0001"),
        ("/etc/ssl/bot.pem", "bot"),
        ("/etc/ssl/bot.example.com.crt", "bot.example.com"),
        ("/run/secrets/bot/tls.crt", "bot"),
        ("certs/bot.pem", "bot"),
        ("fullchain.pem", "fullchain"),
        ("/fullchain.pem", "fullchain"),
        ("/srv/..data/tls.crt", "data"),
        ("/etc/ssl/der bot (neu)!.pem", "der-bot--neu--"),
        ("/etc/ssl/бот.pem", "certificate"),
        (f"/etc/ssl/{'x' * 100}.pem", "x" * 48),
    ],
)
def test_the_path_of_the_chain_is_the_name(chain: str, name: str):
    assert names_of([entry(chain)]) == (name,)


def test_a_configured_name_is_kept_whatever_others_are_called():
    certificates = [entry("/etc/ssl/bot.pem"), entry("/etc/ssl/other.pem", "bot")]
    for order in permutations(certificates):
        names = dict(zip((each.chain for each in order), names_of(order), strict=True))
        assert names["/etc/ssl/other.pem"] == "bot"
        assert re.fullmatch("bot-[0-9a-f]{6}", names["/etc/ssl/bot.pem"])


def test_a_certificate_that_is_added_takes_no_name_away():
    chains = ["/a/bot/tls.crt", "/b/bot/tls.crt", "/c/other.pem", "/d/bot.pem"]
    names = names_of([entry(chain) for chain in chains])
    assert names[0] == "bot"
    assert names[2] == "other"
    assert all(re.fullmatch("bot-[0-9a-f]{6}", name) for name in (names[1], names[3]))
    for count in range(len(chains)):
        assert names_of([entry(chain) for chain in chains[:count]]) == names[:count]


def test_one_file_twice_has_two_names():
    first, second, third = names_of([entry("/etc/ssl/bot.pem")] * 3)
    assert first == "bot"
    assert third == f"{second}-again"


@given(
    st.lists(st.tuples(st.text(min_size=1), st.sampled_from(["fullchain.pem", "x", "tls.crt"])), max_size=6)
)
def test_every_name_is_another_one_and_a_directory_of_its_own(pieces: list[tuple[str, str]]):
    certificates = [
        Certificate.model_construct(chain=f"/{folder}/{file}", key="", name=None) for folder, file in pieces
    ]
    names = names_of(certificates)
    assert len(set(names)) == len(pieces)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) for name in names)
