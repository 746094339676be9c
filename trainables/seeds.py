"""Where randomness comes from: every draw follows from the run's seed and a place in the run, never from history.

A resumed run therefore repeats the draws of an unbroken one without a saved generator, and two workers draw what one
does.
"""

import numpy as np
import torch

INITIALISATION, PRETRAIN, FINETUNE = range(3)
"""First part of a place: what the randomness is for."""


def seed_of(seed: int, *place: int) -> int:
    """A 63-bit seed for one place of a run, independent of those of all other places."""
    # as a spawn key: in one list with the seed, a place would share its numbers with the one that ends in a 0 more
    return int(np.random.SeedSequence(seed, spawn_key=place).generate_state(1, np.uint64)[0] >> 1)


def generator_of(seed: int, *place: int) -> torch.Generator:
    """A CPU generator for one place: the same numbers on every device and for any number of workers."""
    return torch.Generator().manual_seed(seed_of(seed, *place))
