import shutil
import subprocess

import pytest

from trainables import provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Another repository, with a copy of the code inside; `git` runs a command in it."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed here")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    copied = tmp_path / "provenance.py"
    shutil.copy(provenance.__file__, copied)
    monkeypatch.setattr(provenance, "__file__", str(copied))
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]

    def git(*arguments):
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message=empty")
    return git, copied


def revision():
    return provenance.git_revision.__wrapped__()


def test_a_revision_is_the_commit_of_the_code(repository):
    git, copied = repository
    assert revision() is None  # merely installed inside a repository that does not know it
    git("add", copied.name)
    git("commit", "--quiet", "--message=code")
    assert revision() == git("rev-parse", "HEAD")
    copied.write_text("changed")
    assert revision() == git("rev-parse", "HEAD") + "+changes"


def test_code_outside_of_any_repository_has_no_revision(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert revision() is None


def test_code_that_has_left_its_repository_says_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    (tmp_path / provenance.REVISION).write_text("0123abc+changes", encoding="utf-8")
    assert revision() == "0123abc+changes"


def test_a_machine_without_git_has_no_revision(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert revision() is None


def test_versions_name_what_results_depend_on():
    found = provenance.versions()
    assert {"python", "torch", "ray", "optuna", "numpy"} <= set(found)
    assert all(found.values())


def test_the_hardware_is_told_without_a_name():
    found = provenance.hardware()
    assert set(found) == {"system", "cpu", "cores", "memory_gib", "gpu", "num_gpus"}
    assert found["cores"] >= 1
    assert found["memory_gib"] > 0
