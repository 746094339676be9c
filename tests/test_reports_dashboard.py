import http.client
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from reports.dashboard import GrowingJournal, serving

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def journal(tmp_path):
    """The journal of a study that still runs: two trials have ended and one is under way."""
    path = tmp_path / "study" / "journal.log"
    path.parent.mkdir()
    study = optuna.create_study(study_name="heartsweep", storage=JournalStorage(JournalFileBackend(str(path))))
    add_trials(study, 2)
    study.ask()
    return path


def add_trials(study, number):
    for _ in range(number):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(0.5, 1)
        study.tell(trial, 0.25)


@pytest.fixture
def ask(journal):
    """Asks the dashboard of the journal: method, path -> status and content."""
    pytest.importorskip("optuna_dashboard", reason="needs the extra dashboard")
    with serving(journal, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def asked(method, path, body=None):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            return answer.status, content

        yield asked
        server.shutdown()
        thread.join()


def test_the_study_and_its_trials_are_shown(ask):
    status, content = ask("GET", "/api/studies")
    assert status == 200
    (study,) = json.loads(content)["study_summaries"]
    assert study["study_name"] == "heartsweep"
    status, content = ask("GET", f"/api/studies/{study['study_id']}")
    assert [trial["state"] for trial in json.loads(content)["trials"]] == ["Complete", "Complete", "Running"]
    assert ask("GET", "/dashboard")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/studies", '{"study_name": "mine", "directions": ["minimize"]}'),
        ("DELETE", "/api/studies/0", None),
        ("POST", "/api/studies/0/rename", '{"study_name": "mine"}'),
        ("PUT", "/api/studies/0/note", '{"body": "x", "version": 1}'),
        ("POST", "/api/trials/2/tell", '{"state": "Complete", "values": [9]}'),
        ("POST", "/api/trials/0/user-attrs", '{"user_attrs": {"a": 1}}'),
        ("PATCH", "/api/studies/0", "{}"),
    ],
)
def test_nothing_of_the_study_can_be_changed(ask, journal, method, path, body):
    before, beside = journal.read_bytes(), sorted(journal.parent.iterdir())
    status, content = ask(method, path, body)
    assert status == 405
    assert "read-only" in json.loads(content)["reason"]
    ask("GET", "/api/studies/0")
    assert journal.read_bytes() == before
    assert sorted(journal.parent.iterdir()) == beside


def test_even_without_the_door_the_storage_writes_nothing(journal):
    before = journal.read_bytes()
    storage = JournalStorage(GrowingJournal(journal))
    (study,) = storage.get_all_studies()
    with pytest.raises(PermissionError, match="read-only"):
        storage.delete_study(study._study_id)
    assert journal.read_bytes() == before


def test_a_study_that_goes_on_is_followed(journal):
    storage = JournalStorage(GrowingJournal(journal))
    study = optuna.load_study(study_name="heartsweep", storage=JournalStorage(JournalFileBackend(str(journal))))
    for more in (1, 3):
        before = len(storage.get_all_trials(0))
        add_trials(study, more)
        assert len(storage.get_all_trials(0)) == before + more


def test_a_line_that_is_half_written_is_read_when_it_is_whole(journal):
    content = journal.read_bytes()
    journal.write_bytes(content[:-10])
    storage = JournalStorage(GrowingJournal(journal))
    half = len(storage.get_all_trials(0))
    journal.write_bytes(content)
    assert len(storage.get_all_trials(0)) == half + 1 == 3


def test_lines_can_be_read_again_from_any_on(journal):
    backend = GrowingJournal(journal)
    whole = [json.loads(line) for line in journal.read_text().splitlines()]
    assert backend.read_logs(0) == whole
    assert backend.read_logs(len(whole)) == []
    assert backend.read_logs(3) == whole[3:]
    assert backend.read_logs(1) == whole[1:]


def test_a_folder_without_a_journal_is_refused(tmp_path):
    pytest.importorskip("optuna_dashboard", reason="needs the extra dashboard")
    with pytest.raises(ValueError, match=r"holds no journal\.log"), serving(tmp_path / "journal.log", 0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_journal_is_refused_in_one_line(tmp_path):
    pytest.importorskip("optuna_dashboard", reason="needs the extra dashboard")
    (tmp_path / "journal.log").write_text("no journal\n")
    with (
        pytest.raises(ValueError, match="cannot be read as a journal") as refused,
        serving(tmp_path / "journal.log", 0),
    ):
        pass
    assert "\n" not in str(refused.value)


def test_a_port_that_is_taken_is_refused(journal):
    pytest.importorskip("optuna_dashboard", reason="needs the extra dashboard")
    with serving(journal, 0) as server:
        taken = server.server_port
        with pytest.raises(ValueError, match=f"port {taken} .* cannot be had"), serving(journal, taken):
            pass


def test_without_optuna_dashboard_it_says_what_to_install(journal, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(ValueError, match=r"heartsweep\[dashboard\]"), serving(journal, 0):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_interrupted(journal, number):
    pytest.importorskip("optuna_dashboard", reason="needs the extra dashboard")
    (journal.parent / "study.yaml").write_text("search: {name: of another version}\n")
    command = [
        sys.executable,
        str(REPOSITORY / "launch.py"),
        "command=dashboard",
        f"study_dir={journal.parent}",
        "port=0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "http://127.0.0.1:" in line:
                break
        port = int(line.split("127.0.0.1:")[1].split("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/api/studies")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(number)
        try:
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
        assert "Traceback" not in process.stderr.read()
