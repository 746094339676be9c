import hashlib
import json
import subprocess
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables import changes
from trainables.study import StudyFolder

HEAD = "diff --git a/{0} b/{0}\nindex 0..1 100644\n--- a/{0}\n+++ b/{0}\n@@ -1,2 +1,2 @@\n"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a file of code and the module that looks at it; `git` runs a command in it."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "changes.py").write_text("first\nsecond\n")
    monkeypatch.setattr(changes, "__file__", str(tmp_path / "changes.py"))
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]

    def git(*arguments):
        try:
            subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, check=True)
        except FileNotFoundError:
            pytest.skip("git is not installed here")

    git("init", "--quiet")
    git("add", "changes.py")
    git("commit", "--quiet", "--message=code")
    return git, tmp_path


def found():
    return changes.code_changes.__wrapped__()


def test_code_as_it_was_committed_has_no_changes(repository, tmp_path):
    study = StudyFolder(tmp_path / "study")
    assert found().num_bytes == 0
    assert changes.keep_changes(study, found()) is None
    assert not study.path.exists()


def test_the_kept_text_makes_the_changed_file_of_the_committed_one(repository, tmp_path):
    git, folder = repository
    (folder / "changes.py").write_text("first\nchanged\n\n")
    changed = found()
    study = StudyFolder(tmp_path / "study")
    event = changes.keep_changes(study, changed)
    kept = (study.path / event["file"]).read_bytes()
    assert hashlib.sha256(kept).hexdigest() == event["sha256"]
    assert event["stat"] == {"changes.py": [2, 1]}
    git("checkout", "--quiet", "changes.py")
    (folder / "it.diff").write_bytes(kept)
    git("apply", "it.diff")
    assert (folder / "changes.py").read_text() == "first\nchanged\n\n"


def test_a_users_settings_of_git_do_not_change_the_text(repository):
    git, folder = repository
    (folder / "changes.py").write_text("first\nchanged\n")
    before = found()
    for key, value in (("diff.noprefix", "true"), ("color.ui", "always"), ("diff.external", "false")):
        git("config", key, value)
    assert found() == before


def test_source_files_that_git_does_not_know_are_counted_and_not_read(repository, tmp_path):
    (repository[1] / "new.py").write_text("token")
    event = changes.keep_changes(StudyFolder(tmp_path / "study"), found())
    assert event["untracked_sources"] == 1
    assert event["file"] is None


def test_code_in_no_repository_has_no_known_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "__file__", str(tmp_path / "changes.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert found() is None
    assert changes.keep_changes(StudyFolder(tmp_path / "study"), None) is None


def test_code_that_has_left_its_repository_says_what_had_changed(tmp_path, monkeypatch):
    before = changes.changes_in(HEAD.format("a.py") + "-x\n+y\n")
    monkeypatch.setattr(changes, "__file__", str(tmp_path / "changes.py"))
    (tmp_path / changes.LEFT_BEHIND).write_text(json.dumps(asdict(before)))
    assert found() == before


@pytest.mark.parametrize(
    "line",
    [
        "+password = 'correct horse'".replace(" horse", "-horse-battery"),
        '-    "api_key": "0123456789abcdef",',
        " aws = AKIA" + "ABCDEFGHIJKLMNOP",
        "+key = 'ghp_" + 36 * "a" + "'",
        "+url = 's3://user:pass" + "word@bucket/x'",
        "+" + 64 * "A",
        "+-----BEGIN RSA PRIVATE" + " KEY-----",
        "+WANDB_API_KEY=" + 40 * "0",
        "+WANDB_API_KEY=" + 40 * "0" + "  # mine",
        "+db_password: hunter2hunter2",
        "+token = abcDEF123456ghi",
        "+secret_key: abcDEF",
        "+password: str = 'hunter2'",
        "+password: correct(horse",
        "+token = Token('hunter2hunter2')",
        "+X-Api-Key: abcDEF123",
        "+Authorization: Bearer abcdefgh",
        "+Authorization: Basic dXNlcjpw",
        "+curl -H 'authorization: bearer abcdefgh'",
        "+jwt = eyJhbGciOi" + "JIUzI1NiJ9.e30.x",
        "+API_TOKENS='hunter2hunter2'",
    ],
)
def test_a_line_that_looks_like_a_secret_is_not_kept_and_the_digest_is_still_of_the_whole(line):
    whole = f"{HEAD.format('a.py')}{line}\n+harmless\n"
    kept = changes.changes_in(whole)
    assert line[1:] not in kept.text
    assert "+harmless\n" in kept.text
    assert kept.num_left_out == 1
    assert kept.sha256 == hashlib.sha256(whole.encode()).hexdigest()


@pytest.mark.parametrize(
    "line",
    [
        "+token = read_token(path)",
        "+num_tokens: int = 12",
        "+if password is None:",
        "+tokens = tokens + self.position",
        "+tokenizer = tokenizer_of(text)",
        "+    password: str",
        "+token = read(",
        "+basic blocks",
    ],
)
def test_a_line_that_only_names_one_is_kept(line):
    assert line in changes.changes_in(f"{HEAD.format('a.py')}{line}\n").text


@pytest.mark.parametrize("name", [".env", "deploy/server.pem", "credentials.json", "id_rsa"])
def test_no_line_of_a_file_of_secrets_is_kept(name):
    kept = changes.changes_in(HEAD.format(name) + "+anything\n")
    assert "anything" not in kept.text
    assert kept.files == {name: [1, 0]}


def test_a_heading_of_a_hunk_is_kept_without_a_secret_behind_it():
    kept = changes.changes_in(HEAD.format("a.py").rstrip("\n") + " secret = 'abcdefghijk'\n+x\n").text
    assert "@@ -1,2 +1,2 @@\n+x\n" in kept


def test_a_text_that_is_too_long_is_cut_at_a_line(monkeypatch):
    monkeypatch.setattr(changes, "MAX_BYTES", 200)
    whole = HEAD.format("a.py") + 100 * "+0123456789\n"
    kept = changes.changes_in(whole)
    assert len(kept.text) <= 200
    assert whole.startswith(kept.text)
    assert kept.text.endswith("\n")
    assert kept.files == {"a.py": [100, 0]}
    assert kept.num_left_out == whole.count("\n") - kept.text.count("\n")


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=30), max_size=20))
def test_whatever_a_changed_file_holds_is_kept_or_counted(lines):
    kept = changes.changes_in(HEAD.format("a.py") + "".join(f"+{line}\n" for line in lines))
    assert kept.files["a.py"] == [len(lines), 0]
    assert kept.text.count("\n") == 5 + len(lines)
