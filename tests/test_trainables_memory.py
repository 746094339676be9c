import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of glibc alone")

PROGRAM = """
import resource, sys, torch
from trainables.memory import keep_freed_memory

def step():
    values = torch.ones(1 << 20, requires_grad=True)
    for _ in range(20):
        values = values.tanh()
    values.sum().backward()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(5):
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


def faults_of(told, **environment):
    """Pages that five steps of 80 MB and more are given anew, after five others."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, told], check=True, capture_output=True, env=clean | environment
    )
    return int(ended.stdout)


def test_a_step_uses_again_what_the_last_one_freed():
    assert faults_of("keep") < faults_of("give back") / 2


def test_what_the_allocator_was_told_from_outside_stands():
    given_back = {"MALLOC_MMAP_THRESHOLD_": "131072"}
    assert faults_of("keep", **given_back) > 2 * faults_of("keep")
