"""A confirmation of a study in an object store: whatever is lost with the driver's machine, it ends with its choice."""

import shutil

import pytest

from search_spaces.confirmation import Confirmation
from tests.test_search_spaces_confirmation import CONFIRM, SeedTrainer, check_confirmed, choice_of, events_of
from tests.test_search_spaces_ledger import (
    _nothing_waits_for_the_disk,  # noqa: F401  a fixture for this module, too
    launch_of,
    outcome,
)
from tests.test_trainables_stored import Machine, Objects
from trainables import stored as stored_module
from trainables.checkpoint import read_description
from trainables.failures import InterruptedTrial
from trainables.node_folder import StateFolder
from trainables.stored import copy_of_stored
from trainables.study import StudyFolder

LAUNCH = (*CONFIRM, "search.num_trials=3", "search.confirm.seeds=2", "task.finetune.num_epochs=1")


def confirm(machine):
    """Search where that has not ended, then run what the confirmation hands out, and choose."""
    machine.search()
    with machine.ledger() as ledger:
        confirmation = Confirmation(ledger, seed=machine.launch.seed, max_failures=0)
        while (following := confirmation.next_trial()) is not None:
            record, run = following
            node = machine.disk / f"node-{record.key}-{record.attempt}"
            place = StateFolder(node, machine.objects.under(f"running/{record.key}"))
            place.pull()
            trainer = SeedTrainer(record, run, node)
            goes_on = True
            while goes_on:
                result = trainer.epoch()
                place.saved()
                goes_on = confirmation.report(record.number, result)
        confirmation.choose()
    (machine.study.path / "running").mkdir(exist_ok=True)  # a machine on which no run ended has none
    return machine


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A machine that was never lost, whose every event is a batch; its store remembers all that it held."""
    return confirm(Machine(tmp_path_factory.mktemp("unbroken"), Objects(), launch_of(*LAUNCH), waits=True))


def test_a_confirmation_whose_machine_is_lost_at_any_time_ends_with_the_same_choice(tmp_path, unbroken):
    check_confirmed(unbroken.study.path, unbroken.launch)
    assert not unbroken.objects.names("running/")
    begun = [b"confirmation_started" in b"".join(held.values()) for held in unbroken.objects.before]
    assert sum(begun) > 30
    for step in range(begun.index(True), len(begun), 3):
        other = confirm(Machine(tmp_path / "other", Objects(unbroken.objects.before[step]), unbroken.launch))
        check_confirmed(other.study.path, other.launch)
        assert choice_of(other.study.path) == choice_of(unbroken.study.path), step
        assert outcome(other.study.path) == outcome(unbroken.study.path)
        assert not other.objects.names("running/")
        shutil.rmtree(other.disk)


def test_every_confirmed_model_is_in_the_store_and_a_fresh_machine_has_them_all(tmp_path, unbroken):
    names = unbroken.objects.names("checkpoints/confirmed/")
    assert len(names) == 2 * 4  # weights and description of two seeds of two trials
    other = confirm(Machine(tmp_path, Objects(unbroken.objects.held), unbroken.launch))
    assert [event for event in events_of(other.study.path)] == events_of(unbroken.study.path)
    for folder in ("best_1", "best_2", "default"):
        files = [machine.study.checkpoints / folder / "model.safetensors" for machine in (other, unbroken)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_copy_to_be_read_names_the_delivered_model_and_brings_no_weights(tmp_path, unbroken, monkeypatch):
    objects = Objects(unbroken.objects.held)
    monkeypatch.setattr(stored_module, "RemoteFolder", lambda url: objects)
    study = StudyFolder(tmp_path / "copy")
    copy_of_stored(study, "s3://memory/study")
    delivered, copied = (read_description(where.checkpoints / "best_1") for where in (unbroken.study, study))
    assert delivered == copied
    assert "confirmed" in copied
    assert not list(study.path.rglob("model.safetensors"))


def test_a_driver_over_a_copy_that_was_read_brings_the_delivered_models_weights(tmp_path, unbroken, monkeypatch):
    objects = Objects(unbroken.objects.held)
    monkeypatch.setattr(stored_module, "RemoteFolder", lambda url: objects)
    machine = Machine(tmp_path, objects, unbroken.launch)
    copy_of_stored(machine.study, "s3://memory/study")
    assert not (machine.study.checkpoints / "best_1" / "model.safetensors").exists()
    confirm(machine)
    check_confirmed(machine.study.path, machine.launch)


def test_a_model_that_was_kept_and_not_stored_when_the_driver_died_is_stored_by_the_next(
    tmp_path, unbroken, monkeypatch
):
    begun = [b"confirmation_started" in b"".join(held.values()) for held in unbroken.objects.before]
    objects = Objects(unbroken.objects.before[begun.index(True)])

    class Killed(BaseException):
        pass

    def killed(stored, folder):
        assert (folder / "checkpoint.json").exists()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(stored_module.Stored, "push", killed)
        with pytest.raises(Killed):
            confirm(Machine(tmp_path / "first", objects, unbroken.launch))
    machine = confirm(Machine(tmp_path / "first", objects, unbroken.launch))
    check_confirmed(machine.study.path, machine.launch)
    assert objects.names("checkpoints/confirmed/") == unbroken.objects.names("checkpoints/confirmed/")
    assert not objects.names("running/")
    pushed = []
    with monkeypatch.context() as patch:
        patch.setattr(stored_module.Stored, "push", lambda stored, folder: pushed.append(folder))
        confirm(Machine(tmp_path / "first", objects, unbroken.launch))
    assert pushed == []  # what is there is not sent again


def test_a_run_that_begins_anew_finds_nothing_of_its_first_try_wherever_the_machine_was_lost(tmp_path, unbroken):
    begun = [b"confirmation_started" in b"".join(held.values()) for held in unbroken.objects.before]
    machine = Machine(
        tmp_path / "first", Objects(unbroken.objects.before[begun.index(True)]), unbroken.launch, waits=True
    )
    with machine.ledger() as ledger:
        confirmation = Confirmation(ledger, seed=machine.launch.seed, max_failures=0)
        record, run = confirmation.next_trial()
        node = machine.disk / "node"
        place = StateFolder(node, machine.objects.under(f"running/{record.key}"))
        assert confirmation.report(record.number, SeedTrainer(record, run, node).epoch())
        place.saved()
        confirmation.interrupt(record.number, InterruptedTrial("process_died", "it was killed"))
        assert confirmation.trials[record.number].state == "FAIL"
    ended = [b'"confirmation_ended"' in b"".join(held.values()) for held in machine.objects.before]
    left = machine.objects.before[ended.index(True) :]
    assert len(left) > 1
    for number, held in enumerate(left):
        other = confirm(Machine(tmp_path / str(number), Objects(held), unbroken.launch))
        (chosen,), (wanted,) = choice_of(other.study.path)[0], choice_of(unbroken.study.path)[0]
        assert chosen == wanted
        assert not other.objects.names("running/")
