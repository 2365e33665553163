"""Files that cannot be read, and the sentence for each."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from botproxy.config import schema
from botproxy.errors import ConfigError, Problem
from botproxy.keeper.source import Pair, read_pair, read_password
from tests.certs import Issued
from tests.keeper.conftest import NOBODY, Mounted, away_at, somebody_else


@pytest.fixture
def entry(tmp_path: Path, cert_for: Callable[..., Issued]) -> schema.Certificate:
    return cert_for("a.test").write(tmp_path / "certs")


def refusal(entry: schema.Certificate) -> Problem:
    with pytest.raises(ConfigError) as caught:
        read_pair(entry, "certificates[3]")
    [problem] = caught.value.problems
    assert problem.hint
    return problem


def test_the_bytes_of_both_files_are_read(entry: schema.Certificate):
    pair = read_pair(entry, "certificates[0]")
    assert pair.chain == Path(entry.chain).read_bytes()
    assert pair.key == Path(entry.key).read_bytes()
    assert pair.password is None
    assert pair.findings == ()
    assert "PRIVATE" not in repr(pair)


@pytest.mark.parametrize(
    ("content", "password"),
    [(b"sesame\n", b"sesame"), (b"a b \r\n", b"a b "), (b"x\n\n", b"x\n"), (b"y", b"y")],
)
def test_the_password_is_the_file_without_its_last_line_end(
    entry: schema.Certificate, tmp_path: Path, content: bytes, password: bytes
):
    file = tmp_path / "password"
    file.touch(mode=0o600)
    file.write_bytes(content)
    with_password = entry.model_copy(update={"password_file": str(file)})
    assert read_pair(with_password, "certificates[0]").password == password
    assert read_password(with_password) == password


@pytest.mark.parametrize("calls", [1, 2, 1000], ids=["one call", "two calls", "good"])
@pytest.mark.parametrize("field", ["chain", "key", "password_file"])
def test_a_link_that_goes_in_any_moment_is_a_file_that_is_missing_or_still_the_file(
    entry: schema.Certificate, tmp_path: Path, field: str, calls: int
):
    """Between any two calls of the system somebody may take it away, and put another in its place."""
    file = tmp_path / "password"
    file.touch(mode=0o644)
    link = tmp_path / "link"
    entry = entry.model_copy(update={"password_file": str(file)})
    Path(entry.key).chmod(0o644)  # so that a command is made of the way to it
    link.symlink_to(getattr(entry, field))
    entry = entry.model_copy(update={field: str(link)})
    for call in range(1, 1000):
        with away_at(link, call, calls) as has_come:
            try:
                read_pair(entry, "certificates[3]")
            except ConfigError as error:
                [problem] = error.problems
                assert (problem.where, problem.path) == (str(link), f"certificates[3].{field}")
            read_password(entry)
        if not has_come():
            break
    assert call > 10


def test_a_path_from_a_directory_that_is_gone_is_a_file_that_is_missing(
    entry: schema.Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    problem = refusal(entry.model_copy(update={"chain": "site.pem"}))
    assert (problem.where, problem.path) == ("site.pem", "certificates[3].chain")


def test_a_password_that_is_not_to_be_had_is_none(entry: schema.Certificate, tmp_path: Path):
    assert read_password(entry) is None
    for file in (tmp_path, tmp_path / "none"):
        assert read_password(entry.model_copy(update={"password_file": str(file)})) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((b"c", b"k", None), (b"c", b"k", None), True),
        ((b"c", b"k", None), (b"x", b"k", None), False),
        ((b"c", b"k", None), (b"c", b"x", None), False),
        ((b"c", b"k", b"p"), (b"c", b"k", b"x"), False),
        ((b"ck", b"", None), (b"c", b"k", None), False),
        ((b"c", b"kp", None), (b"c", b"k", b"p"), False),
    ],
)
def test_the_digest_is_of_all_that_was_read_and_of_nothing_else(
    one: tuple[bytes, bytes, bytes | None], other: tuple[bytes, bytes, bytes | None], same: bool
):
    assert (Pair(*one, ()).digest == Pair(*other, ()).digest) is same


def test_the_time_of_a_file_is_no_part_of_the_digest(entry: schema.Certificate):
    before = read_pair(entry, "certificates[0]").digest
    for file in (entry.chain, entry.key):
        os.utime(file, (0, 0))
    assert read_pair(entry, "certificates[0]").digest == before


def test_every_file_that_is_missing_is_told_at_once(entry: schema.Certificate, tmp_path: Path):
    missing = {"chain": f"{tmp_path}/no/c.pem", "key": f"{tmp_path}/k.pem", "password_file": f"{tmp_path}/p"}
    with pytest.raises(ConfigError) as caught:
        read_pair(schema.Certificate(**missing), "certificates[3]")
    assert [problem.path for problem in caught.value.problems] == [
        f"certificates[3].{key}" for key in missing
    ]
    assert [problem.where for problem in caught.value.problems] == list(missing.values())


def test_the_first_missing_component_is_named(entry: schema.Certificate, tmp_path: Path):
    problem = refusal(entry.model_copy(update={"chain": f"{tmp_path}/certs/gone/chain.pem"}))
    assert problem.says == f'"{tmp_path}/certs/gone" does not exist'


def test_a_link_to_nothing_names_what_it_leads_to(entry: schema.Certificate, tmp_path: Path):
    (tmp_path / "live").symlink_to(tmp_path / "certs")
    (tmp_path / "certs" / "fullchain.pem").symlink_to("../archive/fullchain7.pem")
    problem = refusal(entry.model_copy(update={"chain": f"{tmp_path}/live/fullchain.pem"}))
    assert problem.says == f'"{tmp_path}/archive" does not exist'


def test_a_circle_of_links_is_named(entry: schema.Certificate, tmp_path: Path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "circle" in refusal(entry.model_copy(update={"key": f"{tmp_path}/a"})).says


def test_a_directory_is_not_a_file(entry: schema.Certificate, tmp_path: Path):
    assert "found a directory" in refusal(entry.model_copy(update={"chain": str(tmp_path)})).says


def test_a_file_is_not_a_directory(entry: schema.Certificate):
    problem = refusal(entry.model_copy(update={"chain": f"{entry.chain}/fullchain.pem"}))
    assert problem.says == f'"{entry.chain}" is not a directory'


def test_a_fifo_is_refused_without_waiting_for_a_writer(entry: schema.Certificate, tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    assert "regular file" in refusal(entry.model_copy(update={"key": f"{tmp_path}/fifo"})).says


def test_a_name_that_is_too_long_is_refused(entry: schema.Certificate, tmp_path: Path):
    assert "cannot be opened" in refusal(entry.model_copy(update={"key": f"{tmp_path}/{'x' * 300}"})).says


def test_a_file_above_one_mebibyte_is_refused(entry: schema.Certificate):
    with open(entry.chain, "r+b") as file:
        file.truncate(1024 * 1024 + 1)
    assert "1 MiB" in refusal(entry).says


def test_a_closed_directory_on_the_way_is_named_with_owner_mode_and_who_asked(
    entry: schema.Certificate, tmp_path: Path
):
    (tmp_path / "live").symlink_to("certs")
    (tmp_path / "certs").chmod(0o000 if os.geteuid() else 0o700)
    try:
        with somebody_else(tmp_path) as uid:
            problem = refusal(schema.Certificate(chain=__file__, key=f"{tmp_path}/live/site.key"))
    finally:
        (tmp_path / "certs").chmod(0o700)
    assert f"uid {uid} (gid" in problem.says
    assert f'may not enter "{tmp_path}/certs"' in problem.says
    assert "drwx------ root:root" in problem.says or os.geteuid()
    assert "chgrp" in (problem.hint or "")


def test_a_closed_file_is_named_with_owner_and_mode(entry: schema.Certificate, tmp_path: Path):
    os.chmod(entry.key, 0o000 if os.geteuid() else 0o600)
    (tmp_path / "certs").chmod(0o755)
    with somebody_else(tmp_path) as uid:
        problem = refusal(entry)
    assert f"uid {uid} (gid" in problem.says
    assert f'may not read "{entry.key}"' in problem.says
    assert "chmod 640" in (problem.hint or "")


@pytest.mark.parametrize("mode", [0o644, 0o602])
def test_a_key_that_others_can_reach_is_a_warning_with_the_command(
    entry: schema.Certificate, tmp_path: Path, mode: int
):
    os.chmod(entry.key, mode)
    link = tmp_path / "privkey.pem"
    link.symlink_to(entry.key)
    [finding] = read_pair(entry.model_copy(update={"key": str(link)}), "certificates[0]").findings
    assert finding.severity == "warning"
    assert "every account" in finding.sentence
    assert finding.fix == f"chmod 600 {entry.key}"


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@as_root
def test_a_key_that_a_group_can_reach_is_a_warning_unless_it_is_our_own(entry: schema.Certificate):
    for mode, group, warned in ((0o640, NOBODY, True), (0o640, 0, False), (0o660, 0, True)):
        os.chown(entry.key, 0, group)
        os.chmod(entry.key, mode)
        found = read_pair(entry, "certificates[0]").findings
        assert [finding.rule for finding in found] == (["open_to_others"] if warned else [])
        assert all("to its group" in finding.sentence for finding in found)
        assert all(finding.fix == f"chmod 600 {entry.key}" for finding in found)


@as_root
@pytest.mark.parametrize("directory", [0o755, 0o700, 0o600], ids=oct)
@pytest.mark.parametrize("mode", [0o000, 0o040, 0o200, 0o600, 0o640, 0o644, 0o660, 0o666], ids=oct)
@pytest.mark.parametrize(("owner", "group"), [(0, 0), (0, NOBODY), (NOBODY, 0), (NOBODY, NOBODY)])
def test_who_follows_the_advice_gets_a_key_that_can_be_read_and_no_more_advice(
    entry: schema.Certificate, tmp_path: Path, owner: int, group: int, mode: int, directory: int
):
    """Of a service that is not root; whoever gives the advice is, or can be."""
    for path, bits in ((Path(entry.key), mode), (tmp_path / "certs", directory)):
        os.chown(path, owner, group)
        path.chmod(bits)
    os.chmod(entry.chain, 0o644)
    groups = os.getgroups()
    given: list[str] = []
    for _ in range(4):
        os.setgroups([])
        with somebody_else(tmp_path):
            try:
                advice = [finding.fix for finding in read_pair(entry, "certificates[0]").findings]
            except ConfigError as error:
                advice = [problem.hint or "" for problem in error.problems]
        os.setgroups(groups)
        if not advice:
            break
        given.append(advice[-1])
        subprocess.run(advice[-1], shell=True, check=True)
    assert advice == [], given
    assert Path(entry.key).stat().st_mode & 0o007 == 0
    assert len(given) <= 2, "one step for the directory, one for the file"


def test_a_password_that_others_can_read_is_a_warning(entry: schema.Certificate, tmp_path: Path):
    (tmp_path / "password").write_bytes(b"sesame")
    (tmp_path / "password").chmod(0o644)
    pair = read_pair(entry.model_copy(update={"password_file": f"{tmp_path}/password"}), "certificates[0]")
    assert [finding.rule for finding in pair.findings] == ["open_to_others"]
    assert "sesame" not in pair.findings[0].sentence


def test_a_file_that_is_mounted_by_itself_is_a_warning(
    entry: schema.Certificate, tmp_path: Path, with_bind_mount: Mounted
):
    outside = tmp_path / "outside.pem"
    outside.write_bytes(Path(entry.chain).read_bytes())
    code = (
        "from botproxy.config.schema import Certificate\n"
        "from botproxy.keeper.source import read_pair\n"
        f"pair = read_pair(Certificate(chain={entry.chain!r}, key={entry.key!r}), 'certificates[0]')\n"
        "print([(each.rule, each.severity) for each in pair.findings], pair.findings[0].sentence)\n"
    )
    said = with_bind_mount(outside, Path(entry.chain), code)
    assert said.startswith("[('mounted_alone', 'warning')]")
    assert f'"{entry.chain}"' in said


def test_no_descriptor_is_lost_on_any_road(entry: schema.Certificate, tmp_path: Path):
    before = sorted(os.listdir("/proc/self/fd"))
    read_pair(entry, "certificates[0]")
    for key in (str(tmp_path), f"{tmp_path}/none", "/dev/null"):
        refusal(entry.model_copy(update={"key": key}))
    assert sorted(os.listdir("/proc/self/fd")) == before
