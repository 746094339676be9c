"""SIGTERM ends a search between two of its steps, and what must not wait is done before anything is waited for."""

import os
import signal
import threading

import pytest

from search_spaces.stopping import ending_on_sigterm


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_search_is_told_to_end_and_the_books_are_closed_once():
    done = []
    with ending_on_sigterm(lambda: done.append(1)) as to_end:
        assert not to_end()
        terminate()
        assert done == []  # not in the middle of a step
        assert to_end()
        assert done == [1]
        assert to_end()
    assert done == [1]


def test_the_books_are_closed_even_if_no_step_follows():
    done = []
    with ending_on_sigterm(lambda: done.append(1)) as to_end:
        terminate()
    assert done == [1]
    assert to_end()


def test_a_second_sigterm_does_not_wait():
    with ending_on_sigterm(lambda: None):
        terminate()
        with pytest.raises(KeyboardInterrupt):
            terminate()


def test_handlers_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with ending_on_sigterm(lambda: None):
        signal.signal(signal.SIGINT, lambda number, frame: None)  # as Tune does, for good
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_thread_that_may_set_no_handler_sets_none():
    found = []

    def search():
        with ending_on_sigterm(lambda: None) as to_end:
            found.append(to_end())

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert found == [False]
