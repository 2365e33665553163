"""Which commit a tree is compared with, and what becomes of a count that fails."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.micro import gate, trees
from bench.micro.gate import Costs, judge
from tests.harness import program


class Repository:
    """One that holds a `botproxy`, in the place of ours."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "botproxy" / "a.py"
        self.file.parent.mkdir()
        self._directory = directory
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
        command = ("git", *identity, *arguments)
        done = subprocess.run(command, cwd=self._directory, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self, content: str, message: str = "a change") -> str:
        self.file.write_text(content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD")

    def accept(self) -> str:
        """Write the baseline anew, in a commit of its own."""
        file = self._directory / trees.BASELINE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("[]")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "what it costs by now")
        return self.git("rev-parse", "HEAD")

    def push(self) -> None:
        """To a remote that has nothing else."""
        self.git("update-ref", "refs/remotes/origin/main", "HEAD")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    program("git")
    monkeypatch.setattr(trees, "ROOT", tmp_path)
    return Repository(tmp_path)


def test_a_branch_is_compared_with_where_it_left_the_main_one_of_the_remote(repository):
    repository.commit("a = 0")
    repository.accept()
    left = repository.commit("a = 1")
    repository.push()
    repository.git("switch", "--quiet", "--create", "mine")
    repository.commit("a = 2")
    repository.commit("a = 3")
    assert trees.base_commit(None) == left


@pytest.mark.parametrize("pushed", [False, True], ids=["no remote", "pushed"])
def test_the_main_branch_is_compared_with_where_its_costs_were_accepted(repository, pushed):
    """Else a regression in any commit but the last would never be seen."""
    repository.commit("a = 0")
    accepted = repository.accept()
    repository.commit("a = 1")
    repository.commit("a = 2")
    if pushed:
        repository.push()
    assert trees.base_commit(None) == accepted
    repository.file.write_text("a = 3")
    assert trees.base_commit(None) == accepted


def test_where_costs_were_accepted_is_compared_with_the_commit_before_or_with_what_is_changed(repository):
    before = repository.commit("a = 0")
    accepted = repository.accept()
    assert trees.base_commit(None) == before
    repository.file.write_text("a = 3")
    assert trees.base_commit(None) == accepted


def test_without_a_baseline_it_is_the_last_commit_or_the_one_before(repository):
    first = repository.commit("a = 1")
    last = repository.commit("a = 2")
    assert trees.base_commit(None) == first
    repository.file.write_text("a = 3")
    assert trees.base_commit(None) == last


def test_a_shallow_clone_has_no_base(repository, tmp_path, monkeypatch):
    """It would take its oldest commit for the one that wrote everything."""
    repository.commit("a = 0")
    repository.accept()
    for number in range(4):
        repository.commit(f"a = {number + 1}")
    shallow = tmp_path / "shallow"
    repository.git("clone", "--quiet", "--depth=3", f"file://{tmp_path}", str(shallow))
    monkeypatch.setattr(trees, "ROOT", shallow)
    monkeypatch.setattr(trees, "GIT", ("git",))
    assert trees.base_commit(None) is None


def test_nothing_is_compared_in_capitals(repository, tmp_path, monkeypatch, capsys):
    program("valgrind")
    monkeypatch.setattr(gate, "BASELINE", tmp_path / "none.json")
    monkeypatch.setattr(gate, "build", dict)
    assert gate.main(None, False) == 0
    assert "SKIPPED, NOTHING WAS COMPARED" in capsys.readouterr().out


def test_a_commit_that_git_cannot_compare_with_is_not_the_same(repository):
    repository.commit("a = 1")
    assert trees.is_changed("0" * 40)


def test_the_first_commit_has_no_base_and_neither_has_a_tree_without_history(repository):
    assert trees.base_commit(None) is None
    repository.commit("a = 1")
    assert trees.base_commit(None) is None


def test_a_named_commit_must_exist(repository):
    first = repository.commit("a = 1")
    repository.commit("a = 2")
    assert trees.base_commit("HEAD^") == first
    with pytest.raises(LookupError, match='expected a commit, found "nowhere"'):
        trees.base_commit("nowhere")


def test_a_new_file_is_a_change_as_well(repository):
    first = repository.commit("a = 1")
    assert not trees.is_changed(first)
    repository.file.with_name("b.py").write_text("")
    assert trees.is_changed(first)


def test_both_copies_hold_what_they_should_and_lie_equally_deep(repository, tmp_path):
    first = repository.commit("a = 1")
    repository.file.write_text("a = 2")
    base, tree = trees.copy_base(first, tmp_path / "x"), trees.copy_tree(tmp_path / "x")
    assert (base / "botproxy" / "a.py").read_text() == "a = 1"
    assert (tree / "botproxy" / "a.py").read_text() == "a = 2"
    assert len(str(base)) == len(str(tree))


def test_trailers_of_the_commits_since_are_found(repository):
    first = repository.commit("a = 1", "start\n\nCosts: old +1%")
    repository.commit("a = 2", "more\n\nCosts: request fields +5%, because they are more")
    assert trees.accepted_since(first) == ["request fields +5%, because they are more"]


def counts(*costs: float) -> Callable[[], Costs]:
    """One count after the other."""
    left = iter(costs)
    return lambda: Costs({"route": next(left)})


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ((100.0,), (101.0,), 0),
        ((100.0, 100.0), (110.0, 101.0), 0),
        ((100.0, 90.0), (110.0, 110.0), 1),
        ((100.0, 120.0), (110.0, 110.0), 1),
    ],
    ids=["passes at once", "the machine was busy", "fails twice", "the lesser of each counts"],
)
def test_what_fails_is_counted_once_more(old, new, code, capsys):
    assert judge(counts(*old), counts(*new), {}) == code
    assert ("counted again" in capsys.readouterr().out) == (len(old) > 1)


def test_what_does_not_work_fails_whatever_it_cost():
    def broken() -> Costs:
        return Costs({}, ("route",))

    assert judge(counts(100.0, 100.0), broken, {}) == 1


ANYWHERE = {"route": 100.0, "request head": 100.0}


def known(costs: dict[str, float], *broken: str) -> Callable[[], Costs]:
    return lambda: Costs(costs, broken)


def test_what_cannot_be_measured_in_the_base_does_not_pass_in_silence(capsys):
    """As when a function that the stages use has another name there."""
    assert judge(known({}, "stages"), known(ANYWHERE), {}) == 1
    said = capsys.readouterr().out
    assert "Costs: NAME anew" in said
    last = said.splitlines()[-1]
    assert last == (
        "gate: FAILED: route, request head; 0 of 2 workloads compared, NOT COMPARED: route, request head"
    )


def test_the_baseline_of_this_build_stands_in_for_a_base_that_cannot_be_measured(capsys):
    assert judge(known({}, "stages"), known(ANYWHERE), {}, ANYWHERE) == 0
    assert capsys.readouterr().out.endswith("accepted; 2 of 2 workloads compared\n")
    assert judge(known({}, "stages"), known(ANYWHERE), {}, {"route": 50.0, "request head": 100.0}) == 1
    assert judge(known({}, "stages"), known(ANYWHERE), {}, {"route": 100.0}) == 1


def test_a_commit_can_accept_that_there_is_no_base_and_the_last_line_says_so(capsys):
    base = known({"route": 100.0}, "request head")
    assert judge(base, known(ANYWHERE), {"request head": math.inf}) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("; 1 of 2 workloads compared, NOT COMPARED: request head")


def test_what_has_a_cost_in_the_base_and_none_here_fails():
    assert judge(known(ANYWHERE), known({"route": 100.0}), {}) == 1


def test_the_baseline_keeps_what_other_builds_cost_if_it_was_counted_alike(tmp_path, monkeypatch):
    file = tmp_path / "baseline.json"
    entries = [
        {"build": "another", "workloads": {"route": 1}},
        {"build": "one of before", "workloads": {"route, in seconds": 1}},
        {"build": "this", "workloads": {"route": 1}},
    ]
    file.write_text(json.dumps(entries))
    monkeypatch.setattr(gate, "BASELINE", file)
    monkeypatch.setattr(gate, "build", lambda: "this")
    monkeypatch.setattr(trees, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="nothing was written, these do not work: route"):
        gate.write(Costs({}, ("route",)))
    gate.write(Costs({"route": 2.2}))
    assert json.loads(file.read_text()) == [entries[0], {"build": "this", "workloads": {"route": 2}}]
