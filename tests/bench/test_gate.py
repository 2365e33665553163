"""Which commit a tree is compared with, and what becomes of a count that fails."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.micro import trees
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


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    program("git")
    monkeypatch.setattr(trees, "ROOT", tmp_path)
    return Repository(tmp_path)


def test_a_branch_is_compared_with_where_it_left_the_main_one(repository):
    left = repository.commit("a = 1")
    repository.git("switch", "--quiet", "--create", "mine")
    repository.commit("a = 2")
    repository.commit("a = 3")
    repository.git("switch", "--quiet", "main")
    repository.commit("a = 4")
    repository.git("switch", "--quiet", "mine")
    assert trees.base_commit(None) == left


def test_the_main_branch_is_compared_with_its_last_commit_or_the_one_before(repository):
    first = repository.commit("a = 1")
    last = repository.commit("a = 2")
    assert trees.base_commit(None) == first
    repository.file.write_text("a = 3")
    assert trees.base_commit(None) == last


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
