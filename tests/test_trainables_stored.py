"""A study in an object store: whatever is lost with the driver's machine, the study goes on from what is stored."""

import functools
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from shutil import ignore_patterns

import numpy as np
import pytest

from search_spaces.distributions import parse, run_with
from search_spaces.ledger import Ledger
from search_spaces.schedulers import make_policy
from tests.test_search_spaces_ledger import (
    ASHA,
    LONGER,
    POPULATION,
    PROMOTING,
    Snapshots,
    Trainer,
    _nothing_waits_for_the_disk,  # noqa: F401  a fixture for this module, too
    check_ancestors,
    check_bests,
    launch_of,
    outcome,
)
from tests.test_search_spaces_ledger import (
    check as check_folder,
)
from trainables import retention
from trainables import stored as stored_module
from trainables.batches import Batch, joined
from trainables.checkpoint import read_description
from trainables.files import StorageError
from trainables.node_folder import StateFolder
from trainables.remote import RemoteFolder
from trainables.stored import (
    HOLDER,
    OUTBOX,
    InFolder,
    Stored,
    copy_of_stored,
    key_of,
    refuse_if_held,
    stored_study,
)
from trainables.study import StudyError, StudyFolder

BOOKS = ("events.jsonl", "journal.log")


class Objects:
    """A store in memory; copies what it holds before each change of it: what the loss of a machine then leaves."""

    def __init__(self, held=(), *, prefix="", everything=None):
        self.everything = everything or {"held": dict(held), "before": [], "lock": threading.RLock(), "wait": None}
        self.prefix = prefix
        self.url = f"s3://memory/{prefix}".rstrip("/")

    @property
    def held(self):
        return self.everything["held"]

    @property
    def before(self):
        return self.everything["before"]

    @contextmanager
    def changing(self, name):
        if self.everything["wait"] is not None:
            self.everything["wait"](name)
        with self.everything["lock"]:
            self.before.append(dict(self.held))
            yield

    def under(self, name):
        return Objects(prefix=f"{self.prefix}{name}/", everything=self.everything)

    def get(self, name):
        return self.held.get(self.prefix + name)

    def get_many(self, names):
        return map(self.get, names)

    def download(self, name, target):
        content = self.get(name)
        if content is None:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        return True

    def put(self, name, content):
        if name == HOLDER:  # of no interest to who goes on
            self.held[self.prefix + name] = content
            return
        with self.changing(name):
            self.held[self.prefix + name] = content

    def upload(self, source, name):
        self.put(name, source.read_bytes())

    def create(self, name, content):
        with self.changing(name):
            return self.held.setdefault(self.prefix + name, content) == content

    def delete(self, name):
        with self.changing(name):
            self.held.pop(self.prefix + name, None)

    def check_creates_only(self):
        pass

    def delete_under(self, prefix):
        for name in self.names(prefix):
            self.delete(name)

    def names(self, prefix=""):
        with self.everything["lock"]:
            names = sorted(self.held)
        return [name.removeprefix(self.prefix) for name in names if name.startswith(self.prefix + prefix)]


class Machine:
    """A machine with its own disk, on which a driver runs a search whose study is in a store."""

    def __init__(self, disk, objects, launch, *, waits=False):
        self.disk, self.objects, self.launch, self.waits = disk, objects, launch, waits
        self.study = StudyFolder(disk / "study")
        self.running = {}

    @contextmanager
    def ledger(self):
        stored = Stored(self.study, self.objects)
        stored.bring_up()
        followed = StudyFolder(self.study.path, on_record=stored.flush if self.waits else stored.step)
        with stored.held():
            followed.write_configuration(self.launch.model_dump(mode="json", by_alias=True))
            space = parse(self.launch.space)
            yield Ledger(
                followed,
                self.launch,
                space,
                make_run=functools.partial(run_with, self.launch),
                first_points=space.first_points(
                    self.launch.model_dump(mode="json", by_alias=True), self.launch.options
                ),
                policy=make_policy(self.launch.scheduler, self.launch.task),
                describe=lambda trial, run: {
                    "trial": trial.number,
                    "epoch": trial.best_epoch,
                    "value": trial.value,
                    "params": trial.params,
                    "exploits": trial.exploits,
                },
                states=stored,
            )

    def begin(self, ledger, trial, run):
        """A trial on some node: in a folder of its own that is empty at first."""
        node = self.disk / f"node-{trial.key}-{time.monotonic_ns()}"
        place = StateFolder(node, self.objects.under(f"running/{trial.key}"))
        place.pull()
        trainer = Trainer(trial, run, node)
        self.running[trial.number] = (trainer, place)

    def epoch(self, number):
        trainer, place = self.running[number]
        before = trainer.state.epoch
        result = trainer.epoch()
        if trainer.state.epoch > before:
            place.saved()
        return result

    def search(self, *, at_a_time=1, order=None, num_results=float("inf")):
        with self.ledger() as ledger:
            while num_results > 0:
                while len(self.running) < at_a_time and (following := ledger.next_trial()) is not None:
                    self.begin(ledger, *following)
                if not self.running:
                    break
                number = int(order.choice(sorted(self.running))) if order else min(self.running)
                result = self.epoch(number)
                if result is None:
                    ledger.end(number, "FAIL", "the process crashed")
                if result is None or not ledger.report(number, result):
                    del self.running[number]
                num_results -= 1
        return ledger

    def population(self):
        """As PopulationScheduler has it: all trials at once, the one that is furthest behind next."""
        with self.ledger() as ledger:
            while (following := ledger.next_trial()) is not None:
                self.begin(ledger, *following)
            while self.running:
                number = min(self.running, key=lambda number: (ledger.trials[number].epoch, number))
                if not ledger.report(number, self.epoch(number)):
                    del self.running[number]
                elif (exploit := ledger.exploit(number)) is not None:
                    self.begin(ledger, *exploit)


def check(path, launch, num_trials):
    (path / "running").mkdir(exist_ok=True)  # a machine on which no trial ended has none
    check_folder(path, launch, num_trials)


def check_store(machine):
    """The store holds what the working copy holds, and nothing of trials that have ended."""
    objects, study = machine.objects, machine.study
    names = [name for name in objects.names() if name.startswith("batches/")]
    books, _, _ = joined(((name, objects.get(name)) for name in names), BOOKS)
    assert books == {name: (study.path / name).read_bytes() for name in books}
    assert objects.get("study.yaml") == study.configuration.read_bytes()
    assert objects.get("trials.parquet") == study.trials.read_bytes()
    assert not objects.names("running/")
    kept = {read_description(folder)["trial"]: folder for folder in study.checkpoints.iterdir()}
    in_store = {int(name.split("/")[1][:4]): name for name in objects.names("models/") if name.endswith(".json")}
    assert in_store.keys() == kept.keys()
    for trial, name in in_store.items():
        assert objects.get(name) == (kept[trial] / "checkpoint.json").read_bytes()
        weights = name.replace("checkpoint.json", "model.safetensors")
        assert objects.get(weights) == (kept[trial] / "model.safetensors").read_bytes()
    assert HOLDER not in objects.names()


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_a_search_leaves_in_the_store_what_it_leaves_on_the_disk(tmp_path, at_a_time):
    launch = launch_of(*ASHA, "search.num_trials=9")
    machine = Machine(tmp_path, Objects(), launch)
    machine.search(at_a_time=at_a_time, order=np.random.default_rng(0))
    check(machine.study.path, launch, 9)
    check_store(machine)
    assert machine.objects.before[0] == {}  # the first object is the claim or the configuration, never a book's bytes
    first_of_books = next(
        held
        for held in machine.objects.before
        for name, content in held.items()
        if name.startswith("batches/") and any(Batch.decode(name, content).added.values())
    )
    assert "study.yaml" in first_of_books


def num_events(objects):
    names = [name for name in objects.names() if name.startswith("batches/")]
    return joined(((name, objects.get(name)) for name in names), BOOKS)[0]["events.jsonl"].count(b"\n")


@pytest.mark.parametrize("at_a_time", [1, 3])
@pytest.mark.parametrize(("scheduler", "num_trials", "step"), [(ASHA, 5, 1), ((*PROMOTING, *LONGER), 7, 5)])
def test_a_search_whose_machine_is_lost_at_any_time_loses_a_batch_and_ends_well(
    tmp_path, at_a_time, scheduler, num_trials, step
):
    launch = launch_of(*scheduler, f"search.num_trials={num_trials}", "sampler.num_startup_trials=2")
    machine = Machine(tmp_path / "unbroken", Objects(), launch, waits=True)  # every event is a batch
    written = []

    def count(name):
        events = machine.study.events
        written.append(events.read_bytes().count(b"\n") if events.exists() else 0)

    machine.objects.everything["wait"] = count
    machine.search(at_a_time=at_a_time, order=np.random.default_rng(1))
    assert len(machine.objects.before) > 40
    told = {event["event"] for event in machine.study.read_events()}
    assert ("trial_promoted" in told) == (scheduler != ASHA)
    for held, before in list(zip(machine.objects.before, written, strict=True))[::step]:
        other = Machine(tmp_path / "other", Objects(held), launch)
        assert before - num_events(other.objects) <= 1
        other.search(at_a_time=at_a_time, order=np.random.default_rng(2))
        check(other.study.path, launch, num_trials)
        check_store(other)
        assert at_a_time > 1 or outcome(other.study.path) == outcome(machine.study.path)
        shutil.rmtree(other.disk)


def test_a_population_whose_machine_is_lost_goes_on_from_the_weights_that_its_books_tell_of(tmp_path):
    launch = launch_of(*POPULATION, "search.num_trials=3")
    machine = Machine(tmp_path / "unbroken", Objects(), launch, waits=True)
    machine.population()
    assert check_ancestors(machine.study.path) >= 2
    check_store(machine)
    for step, held in enumerate(machine.objects.before[::4]):
        other = Machine(tmp_path / f"other-{step}", Objects(held), launch)
        other.population()
        check_ancestors(other.study.path)
        check_bests(other.study.path)
        check_store(other)
        assert [row["state"] for row in outcome(other.study.path)] == ["COMPLETE"] * 3


class Killed(Snapshots):
    """Copies the folder and the store together: what the end of the driver's process leaves of both."""

    def __init__(self, path, into, objects, *, wanted):
        super().__init__(path, into, wanted=wanted)
        self.objects, self.stores = objects, []
        self._driver = threading.get_ident()

    def take(self, torn=None):
        if threading.get_ident() != self._driver:
            return
        taken = len(self.taken)
        copytree = shutil.copytree

        def all_but_outbox(source, target, symlinks=False, ignore=None, *others, **named):
            return copytree(source, target, symlinks, ignore_patterns(OUTBOX), *others, **named)

        with pytest.MonkeyPatch.context() as patch:  # the store's thread empties that folder meanwhile
            patch.setattr(shutil, "copytree", all_but_outbox)
            super().take(torn)
        if len(self.taken) > taken:
            self.stores.append(dict(self.objects.held))


@pytest.mark.parametrize("keeps_its_disk", [True, False])
@pytest.mark.parametrize("scheduler", [ASHA, PROMOTING])
def test_a_driver_killed_at_any_step_goes_on_with_or_without_its_disk(tmp_path, keeps_its_disk, scheduler):
    launch = launch_of(*scheduler, "search.num_trials=4", "sampler.num_startup_trials=2")
    machine = Machine(tmp_path / "unbroken", Objects(), launch)
    machine.study.path.mkdir(parents=True)
    killed = Killed(machine.study.path, tmp_path / "killed", machine.objects, wanted=range(0, 10_000, 17))
    with killed.watching():
        machine.search()
    assert len(killed.taken) > 10
    for step, (folder, held) in enumerate(zip(killed.taken, killed.stores, strict=True)):
        other = Machine(tmp_path / f"other-{step}", Objects(held), launch)
        if keeps_its_disk:
            other.disk.mkdir()
            folder.rename(other.study.path)
        other.search()
        check(other.study.path, launch, 4)
        check_store(other)
        assert outcome(other.study.path) == outcome(machine.study.path)


# -------- a store that is slow, and one that is not there


class Gate:
    """Holds up the objects of the books until it is opened."""

    def __init__(self, objects):
        self.open, self.entered, self.names = threading.Event(), threading.Event(), []
        objects.everything["wait"] = self.wait

    def wait(self, name):
        if name.startswith("batches/"):
            self.names.append(name)
            if len(self.names) > 1:  # the claim goes through
                self.entered.set()
                assert self.open.wait(30)


def test_while_a_batch_is_not_stored_the_steps_that_follow_become_one_batch(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=2")
    machine = Machine(tmp_path, Objects(), launch)
    gate = Gate(machine.objects)
    with machine.ledger() as ledger:
        machine.begin(ledger, *ledger.next_trial())
        assert gate.entered.wait(30)
        for _ in range(3):
            assert ledger.report(0, machine.epoch(0))
        assert gate.names == ["batches/00000000", "batches/00000001"]
        gate.open.set()
    assert gate.names == ["batches/00000000", "batches/00000001", "batches/00000002"]


def test_a_driver_that_gets_too_far_ahead_of_the_store_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_module, "MAX_BEHIND_S", 0.0)
    launch = launch_of("scheduler=fifo", "search.num_trials=2")
    machine = Machine(tmp_path, Objects(), launch)
    gate = Gate(machine.objects)
    with machine.ledger() as ledger:
        machine.begin(ledger, *ledger.next_trial())
        assert gate.entered.wait(30)
        wait = ledger.states._changed.wait

        def open_once_the_driver_waits(timeout=None):
            if threading.current_thread() is threading.main_thread():
                gate.open.set()
            return wait(timeout)

        monkeypatch.setattr(ledger.states._changed, "wait", open_once_the_driver_waits)
        ledger.report(0, machine.epoch(0))
        assert "batches/00000001" in machine.objects.names()


def test_a_store_that_fails_ends_the_driver_and_the_study_goes_on_later(tmp_path):
    launch = launch_of(*ASHA, "search.num_trials=3")
    machine = Machine(tmp_path, Objects(), launch)

    def fail(name):
        if name == "batches/00000004":
            raise StorageError("the store could not create it for 120 s")

    machine.objects.everything["wait"] = fail
    with pytest.raises(StorageError, match="for 120 s"):
        machine.search()
    machine.objects.everything["wait"] = None
    machine.running = {}
    machine.search()
    check(machine.study.path, launch, 3)
    check_store(machine)


# -------- one driver


def test_a_second_driver_that_takes_over_stops_the_first(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=2")
    objects = Objects()
    first, second = (Machine(tmp_path / name, objects, launch) for name in ("first", "second"))
    first.waits = True

    def overtaken():
        with first.ledger() as ledger:
            first.begin(ledger, *ledger.next_trial())
            second.search()
            ledger.report(0, first.epoch(0))

    with pytest.raises(StudyError, match=r"is in use by process \d+ on .*, which has taken it over"):
        overtaken()
    check(second.study.path, launch, 2)
    names = [name for name in objects.names() if name.startswith("batches/")]
    books, _, _ = joined(((name, objects.get(name)) for name in names), BOOKS)
    assert books["events.jsonl"] == second.study.events.read_bytes()


def test_of_two_drivers_that_claim_a_study_at_once_one_is_refused_with_who_holds_it(tmp_path):
    objects = Objects()
    first, second = (Stored(StudyFolder(tmp_path / name), objects) for name in ("first", "second"))
    first.bring_up()
    second.bring_up()
    said = rf"is in use by process {os.getpid()} on {socket.gethostname()} since"
    with first.held(), pytest.raises(StudyError, match=said), second.held():
        pytest.fail("two drivers hold the study")


def holder(**values):
    told = {"session": "s", "host": "elsewhere", "pid": 1, "since": "2026-01-01", "beat": 3}
    return json.dumps(told | values).encode()


def test_a_study_that_nobody_holds_is_free_at_once():
    refuse_if_held(Objects(), pytest.fail)


def test_a_driver_of_this_machine_that_has_died_holds_nothing_up():
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    refuse_if_held(Objects({HOLDER: holder(host=socket.gethostname(), pid=int(gone.stdout))}), pytest.fail)


def test_a_driver_elsewhere_that_stays_silent_is_taken_to_be_dead():
    said = []
    refuse_if_held(Objects({HOLDER: holder()}), said.append, silent_s=0.05)
    assert "was last held by process 1 on elsewhere since 2026-01-01: looking for up to 0.05 s" in said[0]


def test_a_driver_elsewhere_that_is_heard_of_refuses_a_second_one():
    objects = Objects({HOLDER: holder()})
    with pytest.raises(StudyError, match="s3://memory is in use by process 1 on elsewhere since 2026-01-01: wait"):
        refuse_if_held(objects, lambda text: objects.put(HOLDER, holder(beat=4)), silent_s=30)


def test_what_says_who_holds_a_study_is_never_executed_and_named_when_it_is_damaged():
    with pytest.raises(StorageError, match=r"holder.json must say who runs the study, it is damaged"):
        refuse_if_held(Objects({HOLDER: b"\x80\x04."}), pytest.fail)


# -------- without a store


def test_without_a_store_the_folder_is_all(tmp_path):
    study = StudyFolder(tmp_path)
    with stored_study(study, None, pytest.fail) as (same, states):
        assert same is study
        assert isinstance(states, InFolder)
        assert states.remote_of("0000-x") is None
    assert list(tmp_path.iterdir()) == []


# -------- reading, and what others planted there


def test_a_copy_to_read_holds_all_but_weights_and_claims_nothing(tmp_path, bucket, monkeypatch):
    url = f"{bucket}/study"
    launch = launch_of(*ASHA, "search.num_trials=3")
    machine = Machine(tmp_path / "driver", RemoteFolder(url), launch)
    machine.search()
    before = RemoteFolder(url).names()
    copy = StudyFolder(tmp_path / "copy")
    assert copy_of_stored(copy, url)["search"]["num_trials"] == 3
    assert copy.events.read_bytes() == machine.study.events.read_bytes()
    assert outcome(copy.path) == outcome(machine.study.path)
    kept = sorted(path.relative_to(copy.path).as_posix() for path in copy.checkpoints.rglob("*.*"))
    theirs = sorted(path.relative_to(machine.study.path).as_posix() for path in machine.study.checkpoints.rglob("*.*"))
    assert kept == [name for name in theirs if not name.endswith(".safetensors")]
    assert RemoteFolder(url).names() == before
    other = Machine(tmp_path / "copy-driver", RemoteFolder(url), launch)
    copy.path.rename(tmp_path / "moved")
    (tmp_path / "copy-driver").mkdir()
    (tmp_path / "moved").rename(other.study.path)
    other.search()  # the weights come when they are needed
    check(other.study.path, launch, 3)


def test_a_store_without_a_study_is_said_to_have_none(tmp_path, bucket):
    with pytest.raises(StudyError, match=rf"{bucket}/x holds no study \(no study.yaml\)"):
        copy_of_stored(StudyFolder(tmp_path), f"{bucket}/x")


class Planted:
    """What executes when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize(
    "name",
    [
        "study.yaml",
        "batches/00000003",
        "models/{key}/checkpoint.json",
        "models/{key}/model.safetensors",
        "running/{key}/last.safetensors",
        "holder.json",
        "trials.parquet",
        "report/index.html",
        "tuner.pkl",
    ],
)
def test_a_pickle_planted_in_the_store_is_never_executed(tmp_path, name):
    launch = launch_of(*ASHA, "search.num_trials=3")
    machine = Machine(tmp_path / "before", Objects(), launch)
    ledger = machine.search(num_results=6)
    key = ledger.trials[2 if name.startswith("running") else 0].key if len(ledger.trials) > 2 else ledger.trials[0].key
    planted = pickle.dumps(Planted(tmp_path / "executed"))
    machine.objects.held[name.format(key=key)] = planted
    (tmp_path / "after" / "study").mkdir(parents=True)
    (tmp_path / "after" / "study" / "tuner.pkl").write_bytes(planted)
    other = Machine(tmp_path / "after", Objects(machine.objects.held), launch)
    try:
        refuse_if_held(other.objects, pytest.fail)
        other.search()
    except (StorageError, StudyError, ValueError):
        pass  # refused is as good as not looked at
    assert not (tmp_path / "executed").exists()
    pickle.loads(planted)
    assert (tmp_path / "executed").exists()  # else this test could not fail


def test_a_number_given_out_again_with_other_choices_does_not_go_on_from_the_former_ones_state(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=2", "sampler=random")
    machine = Machine(tmp_path / "first", Objects(), launch, waits=True)
    machine.search(num_results=2)
    former = machine.running[0][0].params
    start = next(held for held in machine.objects.before if "study.yaml" in held)  # before any event
    held = start | {name: content for name, content in machine.objects.held.items() if name.startswith("running/")}
    again = launch_of("scheduler=fifo", "search.num_trials=1", "sampler=random", "task.pretrain.lr=2e-4")
    other = Machine(tmp_path / "second", Objects(held), again)
    with other.ledger() as ledger:
        trial, run = ledger.next_trial()
        other.begin(ledger, trial, run)
        assert trial.params != former
        assert other.running[0][0].state.epoch == 0
        assert other.objects.names("running/") == [f"running/{trial.key}/attempt"]  # what nobody knows is deleted


@pytest.mark.parametrize(
    ("number", "params", "exploits"),
    [(1, {"a": 1}, []), (0, {"a": 2}, []), (0, {"a": 1}, [{"epoch": 1, "donor": 2, "params": {"a": 1}}])],
)
def test_what_a_trial_lies_under_says_its_number_its_choices_and_its_exploits(number, params, exploits):
    assert key_of(number, params, exploits) != key_of(0, {"a": 1}, [])
    read_back = json.loads(json.dumps([params, exploits]))
    assert key_of(number, *read_back) == key_of(number, params, exploits)


def test_a_model_whose_trial_has_not_ended_in_the_stored_books_is_not_taken_for_a_kept_one(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=3")
    machine = Machine(tmp_path / "first", Objects(), launch)
    machine.search(num_results=2)
    whole = Machine(tmp_path / "second", Objects(machine.objects.held), launch)
    whole.search()
    lost = {name: content for name, content in whole.objects.held.items() if name.startswith("models/0000-")}
    assert lost
    machine.objects.held.update(lost)  # stored, but not the batch that tells of it
    Stored(machine.study, machine.objects).bring_up()
    assert not machine.study.checkpoints.exists()
    other = Machine(tmp_path / "third", machine.objects, launch)
    other.search()
    check(other.study.path, launch, 3)
    check_store(other)


def test_a_model_that_is_kept_again_is_not_deleted_as_one_that_was_left_over(tmp_path):
    study = StudyFolder(tmp_path / "study")
    objects = Objects()
    stored = Stored(study, objects)
    key = key_of(0, {}, [])
    stored._models = {key}
    stored.kept()  # nothing is kept here: what the store has is superfluous
    weights = tmp_path / "weights"
    weights.write_bytes(b"weights")
    description = {"trial": 0, "value": 0.5, "params": {}, "exploits": []}
    with stored.held():
        retention.keep(study, weights, description, keep_best=1, maximize=True)
        stored.kept()
    assert objects.names("models/") == [f"models/{key}/checkpoint.json", f"models/{key}/model.safetensors"]


def test_tune_may_pickle_a_study_while_it_is_held_and_gets_no_more_than_its_url(tmp_path):
    stored = Stored(StudyFolder(tmp_path), RemoteFolder("s3://bucket/x"))
    assert pickle.loads(pickle.dumps(stored)) == RemoteFolder("s3://bucket/x")
    assert b"AWS" not in pickle.dumps(StudyFolder(tmp_path, on_record=stored.step))


def test_a_report_made_elsewhere_takes_the_place_of_an_older_one_but_not_of_one_that_is_not_stored_yet(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=2")
    machine = Machine(tmp_path / "first", Objects(), launch)
    machine.search(num_results=2)
    older = tmp_path / "older" / "study"
    shutil.copytree(machine.study.path, older)
    (older / "report").mkdir()
    (older / "report" / "figures").write_text("older")
    machine.running = {}
    machine.search()
    machine.objects.put("report/figures", b"newer")
    Stored(StudyFolder(older), machine.objects).bring_up()
    assert (older / "report" / "figures").read_text() == "newer"
    (older / "report" / "figures").write_text("not stored yet")
    Stored(StudyFolder(older), machine.objects).bring_up()
    assert (older / "report" / "figures").read_text() == "not stored yet"
    Stored(StudyFolder(older), machine.objects).bring_up(weights=False)
    assert (older / "report" / "figures").read_text() == "newer"


def test_what_others_put_beside_the_objects_of_a_study_is_left_alone(tmp_path):
    launch = launch_of(*ASHA, "search.num_trials=3")
    machine = Machine(tmp_path / "first", Objects(), launch)
    machine.search(num_results=6)
    notes = ["running/notes.txt", "models/mine/checkpoint.json", "models/0000-x/checkpoint.json", "readme"]
    machine.objects.held.update(dict.fromkeys(notes, b"a note"))
    other = Machine(tmp_path / "second", Objects(machine.objects.held), launch)
    other.search()
    check(other.study.path, launch, 3)
    assert set(notes) <= set(other.objects.names())
