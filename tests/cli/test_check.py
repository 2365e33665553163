"""`botproxy check` on configurations and certificates of every kind."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

import pytest
import trustme

from botproxy.cli import development
from tests.cli.command import Ended, botproxy

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture
def ca() -> trustme.CA:
    """An intermediate, as public CAs sign with."""
    return trustme.CA().create_child_ca()


def written(directory: Path, certificate: trustme.LeafCert, *, chain: int | None = None) -> None:
    """`chain.pem` (the first `chain` certificates, by default all) and `key.pem`."""
    pems = [blob.bytes() for blob in certificate.cert_chain_pems[:chain]]
    (directory / "chain.pem").write_bytes(b"".join(pems))
    (directory / "key.pem").write_bytes(certificate.private_key_pem.bytes())
    (directory / "key.pem").chmod(0o600)


def check(directory: Path, *more: str, options: tuple[str, ...] = ()) -> Ended:
    """Check a configuration with that pair and `more` lines."""
    file = directory / "botproxy.yaml"
    user = ["user: nobody"] if os.geteuid() == 0 else []  # as root one has to be named
    lines = ["certificates: [{chain: chain.pem, key: key.pem}]", *more]
    if not any(line.startswith("user:") for line in more):
        lines += user
    file.write_text("\n".join([*lines, ""]))
    return botproxy("check", str(file), *options)


def rules(ended: Ended) -> dict[str, str]:
    """Rule and severity of every finding in the JSON of `ended`."""
    certificates = json.loads(ended.out)["certificates"]
    return {finding["rule"]: finding["severity"] for each in certificates for finding in each["findings"]}


def test_a_configuration_without_errors_is_exit_code_0_and_shows_its_certificates(tmp_path, ca):
    written(tmp_path, ca.issue_cert("bot.example.com", "www.example.com", not_after=NOW + 61 * DAY))
    ended = check(tmp_path)
    assert ended.code == 0
    first, *facts, last = ended.out.splitlines()
    assert first == "certificates[0]: bot.example.com, www.example.com"
    assert [fact.split()[0] for fact in facts] == ["file", "issuer", "key", "valid"]
    assert facts[0].split()[1] == f"{tmp_path}/chain.pem"
    assert facts[3].endswith("60 days left")
    assert last.startswith(f"{tmp_path}/botproxy.yaml: ")
    assert "error" not in ended.err


def test_every_problem_of_the_configuration_is_told_at_once(tmp_path):
    file = tmp_path / "botproxy.yaml"
    file.write_text(
        "certificates: [{chain: c.pem, key: k.pem}]\nlisten: [':https']\nworkrs: 2\nuser: nobody\n"
    )
    ended = botproxy("check", str(file))
    assert ended.code == 2
    assert f"botproxy: error: {file}:2: listen[0]: expected an address" in ended.err
    assert f"botproxy: error: {file}:3: workrs: " in ended.err
    assert 'botproxy: hint: did you mean "workers"?' in ended.err
    assert "c.pem" in ended.err
    assert ended.out == f"{file}: 4 errors\n"


def test_a_configuration_that_is_not_there_is_exit_code_2(tmp_path):
    ended = botproxy("check", str(tmp_path / "absent.yaml"))
    assert ended.code == 2
    assert "absent.yaml" in ended.err


def test_a_certificate_file_that_is_not_there_is_exit_code_1(tmp_path, ca):
    written(tmp_path, ca.issue_cert("bot.example.com"))
    (tmp_path / "chain.pem").unlink()
    ended = check(tmp_path)
    assert ended.code == 1
    assert f'"{tmp_path}/chain.pem" does not exist' in ended.err


def test_a_key_of_another_certificate_is_exit_code_1(tmp_path, ca):
    written(tmp_path, ca.issue_cert("bot.example.com"))
    (tmp_path / "key.pem").write_bytes(ca.issue_cert("bot.example.com").private_key_pem.bytes())
    ended = check(tmp_path)
    assert ended.code == 1
    assert "the private key belongs to another certificate" in ended.err
    assert "botproxy: hint: name chain and key of the same pair" in ended.err


def test_a_typo_hides_neither_missing_files_nor_findings(tmp_path, ca):
    written(tmp_path, ca.issue_cert("bot.example.com", not_before=NOW - 90 * DAY, not_after=NOW - DAY))
    (tmp_path / "botproxy.yaml").write_text(
        "certificates: [{chain: 5, key: k}, {chain: no.pem, key: no.key}, {chain: chain.pem, key: key.pem}]\n"
        "workrs: 2\nacme_webroot: absent\nuser: no-such-account\n"
        "upstreams: {bot: {url: 'https://a', ca: absent.pem}}\n"
    )
    ended = botproxy("check", "--json", str(tmp_path / "botproxy.yaml"))
    answer = json.loads(ended.out)
    assert ended.code == 2
    assert {problem["path"] for problem in answer["problems"]} == {
        *("certificates[0].chain", "workrs", "acme_webroot", "user", "upstreams.bot.ca"),
        *("certificates[1].chain", "certificates[1].key"),
    }
    assert all(problem["hint"] for problem in answer["problems"])
    assert [each["path"] for each in answer["certificates"]] == ["certificates[2]"]
    assert rules(ended)["expired"] == "error"


def test_a_key_of_another_certificate_hides_nothing_about_the_others(tmp_path, ca):
    written(tmp_path, ca.issue_cert("a.example.com", not_before=NOW - 90 * DAY, not_after=NOW - DAY))
    (tmp_path / "wrong.pem").write_bytes(ca.issue_cert("bot.example.com").private_key_pem.bytes())
    (tmp_path / "botproxy.yaml").write_text(
        "certificates: [{chain: chain.pem, key: wrong.pem}, {chain: chain.pem, key: key.pem}]\nuser: nobody\n"
    )
    ended = botproxy("check", "--json", str(tmp_path / "botproxy.yaml"))
    found = [{one["rule"] for one in each["findings"]} for each in json.loads(ended.out)["certificates"]]
    assert ended.code == 1
    assert "key_mismatch" in found[0]
    assert "expired" in found[1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("acme_webroot: chain.pem", "expected a directory, found something else"),
        ("acme_webroot: absent", "expected a directory, found nothing"),
        ("user: no-such-account", 'expected an existing account, found none named "no-such-account"'),
    ],
)
def test_what_the_machine_does_not_have_is_exit_code_2(tmp_path, ca, line, says):
    written(tmp_path, ca.issue_cert("bot.example.com"))
    ended = check(tmp_path, line)
    assert ended.code == 2
    assert f"{tmp_path}/botproxy.yaml:2: {line.partition(':')[0]}: {says}" in ended.err


def test_a_certificate_that_no_route_uses_is_a_warning(tmp_path, ca):
    written(tmp_path, ca.issue_cert("bot.example.com"))
    ended = check(tmp_path, "routes: [{hosts: [other.example.com]}]", options=("--json",))
    assert rules(ended)["unused_certificate"] == "warning"


def test_a_missing_intermediate_is_an_error(tmp_path, ca):
    written(tmp_path, ca.issue_cert("bot.example.com"), chain=1)
    ended = check(tmp_path, options=("--json",))
    assert ended.code == 1
    assert rules(ended)["missing_intermediate"] == "error"


def test_an_expired_certificate_is_an_error_and_says_so_in_the_list(tmp_path, ca):
    written(tmp_path, ca.issue_cert("bot.example.com", not_before=NOW - 90 * DAY, not_after=NOW - DAY / 2))
    ended = check(tmp_path)
    assert ended.code == 1
    assert f"until {NOW - DAY / 2:%Y-%m-%d}, expired" in ended.out
    assert "botproxy: error: " in ended.err
    assert "botproxy: hint: renew it" in ended.err


def test_a_host_of_a_route_that_no_certificate_covers_is_an_error(tmp_path, ca):
    written(tmp_path, ca.issue_cert("bot.example.com"))
    ended = check(tmp_path, "routes: [{hosts: [other.example.com]}]", options=("--json",))
    assert ended.code == 1
    assert rules(ended)["name_not_covered"] == "error"


def test_a_chain_in_the_wrong_order_is_a_warning_and_exit_code_0(tmp_path, ca):
    certificate = ca.create_child_ca().issue_cert("bot.example.com")
    written(tmp_path, certificate)
    (tmp_path / "chain.pem").write_bytes(
        b"".join(blob.bytes() for blob in reversed(certificate.cert_chain_pems))
    )
    ended = check(tmp_path, options=("--json",))
    assert ended.code == 0
    assert rules(ended)["order"] == "warning"


def test_a_key_that_others_can_read_is_a_warning_with_the_command_that_helps(tmp_path, ca):
    written(tmp_path, ca.issue_cert("bot.example.com"))
    (tmp_path / "key.pem").chmod(0o644)
    ended = check(tmp_path)
    assert ended.code == 0
    assert "botproxy: warning: " in ended.err
    assert f"botproxy: hint: chmod 600 {os.path.realpath(tmp_path)}/key.pem" in ended.err


def test_the_keys_of_the_json_are_stable(tmp_path, ca):
    written(tmp_path, ca.issue_cert("bot.example.com", not_after=NOW + 61 * DAY))
    ended = check(tmp_path, options=("--json",))
    answer = json.loads(ended.out)
    assert (answer["ok"], answer["problems"], ended.err) == (True, [], "")
    [certificate] = answer["certificates"]
    assert {key: certificate[key] for key in ("path", "file", "names", "key_type", "days_left")} == {
        "path": "certificates[0]",
        "file": f"{tmp_path}/chain.pem",
        "names": ["bot.example.com"],
        "key_type": "ecdsa",
        "days_left": 60,
    }
    assert certificate.keys() == {
        *("path", "file", "names", "issuer", "key_type", "not_before", "not_after"),
        *("days_left", "fingerprint", "findings"),
    }
    for finding in certificate["findings"]:
        assert finding.keys() == {"rule", "severity", "says", "hint"}


def test_problems_in_the_json_say_where_and_what_to_do(tmp_path):
    (tmp_path / "botproxy.yaml").write_text("certificate: []\n")
    ended = botproxy("check", "--json", str(tmp_path / "botproxy.yaml"))
    answer = json.loads(ended.out)
    assert (ended.code, ended.err, answer["ok"], answer["certificates"]) == (2, "", False, [])
    unknown = next(problem for problem in answer["problems"] if problem["path"] == "certificate")
    assert unknown.keys() == {"where", "path", "says", "hint"}
    assert unknown["where"] == f"{tmp_path}/botproxy.yaml:1"
    assert unknown["hint"] == 'did you mean "certificates"?'


def test_names_from_a_certificate_cannot_drive_the_terminal(tmp_path, ca):
    written(tmp_path, ca.issue_cert("bot.example.com", common_name="\x1b[2Jgone", organization_name="\x07"))
    ended = check(tmp_path)
    assert "\x1b" not in ended.out + ended.err
    assert "\x07" not in ended.out + ended.err


def test_checking_changes_nothing(tmp_path):
    files = development.certificate(tmp_path / "development", NOW)
    (tmp_path / "botproxy.yaml").write_text(
        f"certificates: [{{chain: {files.chain}, key: {files.key}}}]\nstate_dir: state\nuser: nobody\n"
    )
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert botproxy("check", str(tmp_path / "botproxy.yaml")).code == 0
    assert sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
