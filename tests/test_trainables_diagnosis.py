"""Which errors interrupt a trial, and which are its own."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from torch.distributed import DistBackendError

from trainables.diagnosis import Note, interruption_in, interruption_of, interruption_of_gang, reason_of
from trainables.failures import COUNTS, MAX_REASON, InterruptedTrial
from trainables.files import StorageError

DEAD = "dead0"


def alive(node):
    return node != DEAD


def raised_in_a_task(error):
    """As Ray hands over what a trial's method raised: an error of two classes."""
    task_error = RayTaskError("step", f"Traceback\n{type(error).__name__}: {error}", error, "proc", 1, "127.0.0.1")
    return task_error.as_instanceof_cause()


def died(message="The actor died unexpectedly.", *, preempted=False):
    return RayActorError("a1", message, False, preempted)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (died(), "process_died"),
        (died("The actor died because its node has died. Node Id: 17"), "node_lost"),
        (died("The actor is dead because its owner has died."), "node_lost"),
        (died(preempted=True), "node_draining"),
        (ActorUnavailableError("no answer", b"\0" * 16), "node_lost"),
        (ActorDiedError(), "process_died"),
        (OutOfMemoryError("the node ran low on memory"), "process_died"),
        (WorkerCrashedError(), "process_died"),
        (raised_in_a_task(InterruptedTrial("node_draining", "it goes", ("n1",))), "node_draining"),
        (raised_in_a_task(died("The actor died because its node has died.")), "node_lost"),
        (raised_in_a_task(ValueError("no such lead")), None),
        (raised_in_a_task(MemoryError()), None),
        (RayActorError("a1", "The actor died because of an error raised in its creation task", True), None),
    ],
)
def test_a_trial_is_interrupted_by_what_it_runs_on_alone(error, cause):
    found = interruption_of(error, alive=alive, nodes=["n1"])
    assert (None if found is None else found.cause) == cause
    assert found is None or type(found) is InterruptedTrial


def test_a_process_that_died_on_a_node_that_is_gone_is_the_nodes_matter():
    assert interruption_of(died(), alive=alive, nodes=("n1", DEAD)).cause == "node_lost"
    assert {"node_lost", "node_draining"}.isdisjoint(COUNTS)


def test_a_disk_that_cannot_be_written_interrupts_the_trial_and_names_the_node():
    found = interruption_in(StorageError("running/0001 cannot be written: the disk is full"), "n7")
    assert (found.cause, found.nodes) == ("storage", ("n7",))
    assert "the disk is full" in found.reason
    assert interruption_in(ValueError("own"), "n7") is None


def test_an_interruption_arrives_whole_in_another_process():
    sent = InterruptedTrial("storage", "the disk\nis full " + "x" * 2 * MAX_REASON, ("n1", "n2"))
    came = pickle.loads(pickle.dumps(sent))  # as Ray sends it
    assert (came.cause, came.reason, came.nodes) == (sent.cause, sent.reason, ("n1", "n2"))
    assert "\n" not in came.reason
    assert len(came.reason) <= MAX_REASON


def test_the_reason_of_a_trials_own_failure_is_its_error_in_one_line():
    assert reason_of(raised_in_a_task(ValueError("no such\nlead"))) == "ValueError: no such lead"
    assert reason_of(died("first\nlast")) == "RayActorError: first last"


# -------- gangs: the end of one worker ends the others, with errors that say nothing

PEERS = [RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), DistBackendError("NCCL error")]


@pytest.mark.parametrize("peer", PEERS)
def test_a_worker_whose_peer_is_gone_says_nothing_of_its_own(peer):
    assert Note.of(peer, "n1").kind == "peer"
    assert Note.of(ValueError("no such lead"), "n1").kind == "own"
    assert Note.of(StorageError("the disk is full"), "n1").kind == "storage"


def gang(failures=(), notes=(), nodes=("n1", "n2")):
    found = interruption_of_gang(dict(enumerate(failures)), notes, alive=alive, nodes=nodes)
    return None if found is None else found.cause


def test_a_dead_worker_explains_the_errors_of_the_others():
    notes = [Note.of(peer, "n2") for peer in PEERS]
    assert gang([died()], notes) == "process_died"
    assert gang([died("The actor died because its node has died.")], notes) == "node_lost"
    assert gang([], notes) == "process_died"  # the dead one was not seen
    assert gang([], notes, nodes=("n1", DEAD)) == "node_lost"


def test_an_error_of_one_worker_is_the_trials_own_whatever_it_does_to_the_others():
    own = Note.of(ValueError("no such lead"), "n1")
    assert gang([], [Note.of(PEERS[0], "n2"), own]) is None
    assert gang([RuntimeError("Train's wrapper of it")], [own]) is None


def test_a_full_disk_of_one_worker_interrupts_the_gang_and_names_that_node():
    notes = [Note.of(PEERS[0], "n1"), Note.of(StorageError("the disk is full"), "n2")]
    found = interruption_of_gang({}, notes, alive=alive, nodes=("n1", "n2"))
    assert (found.cause, found.nodes) == ("storage", ("n2",))


FAILURES = st.lists(st.sampled_from([died(), died("its node has died"), RuntimeError("wrapped"), ActorDiedError()]))
NOTES = st.lists(
    st.sampled_from([*PEERS, ValueError("own"), StorageError("full"), InterruptedTrial("node_draining", "it goes")])
)


@given(failures=FAILURES, errors=NOTES)
def test_a_lost_machine_goes_before_a_lost_process_and_this_before_all_else(failures, errors):
    cause = gang(failures, [Note.of(error, "n1") for error in errors])
    if any("node has died" in str(failure) for failure in failures):
        assert cause == "node_lost"
    elif any(isinstance(error, InterruptedTrial) for error in errors):
        assert cause == "node_draining"
    elif any(isinstance(failure, RayActorError) for failure in failures):
        assert cause == "process_died"
    elif any(isinstance(error, StorageError) for error in errors):
        assert cause == "storage"
    elif any(isinstance(error, ValueError) for error in errors) or not errors:
        assert cause is None
