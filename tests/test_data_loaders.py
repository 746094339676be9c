from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import loaders
from data.loaders import TrainBatches, Window, copied_to, eval_batches, resident_signals, worker_share
from data.transforms import OPERATIONS, Flip, RandAugment, Transform, WhiteNoise, standardize

CPU = torch.device("cpu")
RAW = Window(num_samples=8, standardize="none", num_crops=3)
NUM_LEADS = 3
MV_PER_UNIT = 0.5


@dataclass(eq=False)
class SmallStore:
    """What the loaders ask of data.store.Store, in memory."""

    signals: np.ndarray
    index: pd.DataFrame
    mv_per_unit: float = MV_PER_UNIT

    def record(self, row: int) -> np.ndarray:
        offset, num_samples = self.index.loc[row, ["offset", "num_samples"]]
        return self.signals[offset : offset + NUM_LEADS * num_samples].reshape(NUM_LEADS, num_samples)


def store_of(lengths: list[int]) -> SmallStore:
    """A store in which every sample says where it lies: its own position in the flat array."""
    sizes = NUM_LEADS * np.array(lengths, dtype=np.int64)
    signals = np.arange(sizes.sum(), dtype=np.int16)
    signals.flags.writeable = False  # as the memory map is
    return SmallStore(signals, pd.DataFrame({"offset": np.cumsum(sizes) - sizes, "num_samples": lengths}))


def batches_of(store: SmallStore, num_records: int | None = None, **changes) -> TrainBatches:
    rows = np.arange(len(store.index) if num_records is None else num_records)
    arguments = {"targets": None, "window": RAW, "batch_size": 4, "transforms": [], "seed": 0, "device": CPU} | changes
    return TrainBatches(store, arguments.pop("rows", rows), **arguments)


def rows_of(batches: TrainBatches, epoch: int) -> list[int]:
    return [row for batch in batches.epoch(epoch) for row in batch.rows.tolist()]


def is_crop_of(store: SmallStore, crop: torch.Tensor, row: int) -> bool:
    record = store.record(row) * MV_PER_UNIT
    starts = range(record.shape[1] - crop.shape[1] + 1)
    return any(np.array_equal(crop.numpy(), record[:, start : start + crop.shape[1]]) for start in starts)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(8, 20), min_size=1, max_size=9), batch_size=st.integers(1, 5))
def test_every_training_crop_is_a_window_of_all_leads_of_its_record(lengths, batch_size):
    store = store_of(lengths)
    for batch in batches_of(store, batch_size=batch_size).epoch(0):
        assert batch.signal.dtype == torch.float32
        assert all(is_crop_of(store, crop, row) for crop, row in zip(batch.signal, batch.rows.tolist(), strict=True))


def test_training_crops_start_anywhere_and_anew_in_every_epoch():
    store = store_of([11])
    batches = batches_of(store)
    starts = [int(batch.signal[0, 0, 0] / MV_PER_UNIT) for epoch in range(60) for batch in batches.epoch(epoch)]
    assert set(starts) == {0, 1, 2, 3}


def test_an_epoch_takes_each_row_once_in_an_order_that_follows_from_seed_and_epoch():
    store = store_of([10] * 12)
    first = rows_of(batches_of(store), 0)
    assert sorted(first) == list(range(12))
    assert rows_of(batches_of(store), 0) == first
    assert rows_of(batches_of(store), 1) != first
    assert rows_of(batches_of(store, seed=1), 0) != first


def test_an_epoch_does_not_depend_on_those_before_it():
    store = store_of([12] * 9)
    augment = RandAugment(operations=list(OPERATIONS), level=9, num_layers=2, probability=0.7)
    batches, fresh = (batches_of(store, transforms=[augment]) for _ in range(2))
    for epoch in (0, 1):
        list(batches.epoch(epoch))
    for after, alone in zip(batches.epoch(2), fresh.epoch(2), strict=True):
        assert torch.equal(after.signal, alone.signal)
        assert np.array_equal(after.rows, alone.rows)


@settings(max_examples=30, deadline=None)
@given(num_records=st.integers(1, 12), batch_size=st.integers(1, 6), world_size=st.integers(1, 4), data=st.data())
def test_the_parts_of_all_workers_are_the_batch_of_one(num_records, batch_size, world_size, data):
    world_size = min(world_size, batch_size, num_records)
    lengths = data.draw(st.lists(st.integers(8, 15), min_size=num_records, max_size=num_records))
    store = store_of(lengths)
    settings_of = {
        "targets": np.arange(num_records * 2, dtype=np.float32).reshape(num_records, 2),
        "window": Window(num_samples=8, standardize="record", num_crops=1),
        "batch_size": batch_size,
        "transforms": [Flip(), RandAugment(operations=list(OPERATIONS), level=10, num_layers=3, probability=0.8)],
    }
    alone = list(batches_of(store, **settings_of).epoch(3))
    workers = [batches_of(store, **settings_of, rank=rank, world_size=world_size) for rank in range(world_size)]
    together = list(zip(*(worker.epoch(3) for worker in workers), strict=True))
    assert len(together) == len(alone)
    for parts, whole in zip(together, alone, strict=True):
        torch.testing.assert_close(torch.cat([part.signal for part in parts]), whole.signal)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
        assert np.array_equal(np.concatenate([part.rows for part in parts]), whole.rows)
        assert {part.global_size for part in parts} == {whole.global_size} == {len(whole.rows)}
        assert [part.start for part in parts] == np.cumsum([0, *(len(part.rows) for part in parts)])[:-1].tolist()


@pytest.mark.parametrize("num_views", [1, 2])
def test_a_batch_is_the_same_prepared_alone_or_with_others(monkeypatch, num_views):
    augment = RandAugment(operations=list(OPERATIONS), level=9, num_layers=2, probability=0.7)
    store = store_of([12] * 23)
    together = list(batches_of(store, transforms=[augment], num_views=num_views).epoch(1))
    monkeypatch.setattr(loaders, "_PREPARED_RECORDS", 1)
    alone = list(batches_of(store, transforms=[augment], num_views=num_views).epoch(1))
    assert len(together) == len(alone) == 5
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.rows, other.rows)
        torch.testing.assert_close(one.signal, other.signal)


def test_crops_gathered_from_a_copy_on_the_device_are_those_of_the_map(monkeypatch):
    monkeypatch.setattr(loaders, "_COPIED_SAMPLES", 7)  # so that the copy takes many parts, the last one shorter
    store = store_of([8, 13, 9, 20, 11])
    from_map, from_copy = (batches_of(store, num_views=2, batch_size=2) for _ in range(2))
    copy = copied_to(CPU, store.signals)
    assert np.array_equal(copy.numpy(), store.signals)
    from_copy._crops._resident_windows = copy.unfold(0, 8, 1)
    for expected, found in zip(from_map.epoch(3), from_copy.epoch(3), strict=True):
        assert torch.equal(found.signal, expected.signal)


def test_recordings_are_copied_to_a_gpu_whose_free_memory_they_would_take_a_quarter_of(monkeypatch):
    store = store_of([50] * 4)  # 600 samples of two bytes
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(loaders, "copied_to", lambda device, signals: (device, len(signals)))
    found = []
    for free_bytes in (4799, 4800):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free_bytes=free_bytes: (free_bytes, 10**9))
        resident_signals.cache_clear()
        found.append(resident_signals(store, gpu))
    resident_signals.cache_clear()
    assert found == [None, (gpu, 600)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident_share", [0.0, 0.25])
def test_batches_on_a_gpu_are_those_of_the_cpu(monkeypatch, resident_share):
    monkeypatch.setattr(loaders, "RESIDENT_SHARE", resident_share)
    resident_signals.cache_clear()
    augment = RandAugment(operations=list(OPERATIONS), level=9, num_layers=2, probability=0.7)
    store = store_of([400] * 12)
    window = Window(num_samples=300, standardize="record", num_crops=1)
    settings_of = {"window": window, "transforms": [augment], "targets": np.eye(12, dtype=np.float32)}
    on_gpu = batches_of(store, **settings_of, device=torch.device("cuda", 0))
    for expected, found in zip(batches_of(store, **settings_of).epoch(0), on_gpu.epoch(0), strict=True):
        torch.testing.assert_close(found.signal.cpu(), expected.signal, atol=1e-4, rtol=1e-4)
        assert torch.equal(found.targets.cpu(), expected.targets)
    resident_signals.cache_clear()


def test_targets_stay_with_their_rows():
    rows = np.array([5, 2, 7, 0])
    batches = batches_of(store_of([10] * 8), rows=rows, targets=rows[:, None].astype(np.float32), batch_size=2)
    for batch in batches.epoch(0):
        assert batch.targets is not None
        assert batch.targets[:, 0].tolist() == batch.rows.tolist()


def test_the_last_incomplete_batch_is_dropped_unless_it_is_the_only_one():
    store = store_of([10] * 10)
    assert [len(batch.rows) for batch in batches_of(store, batch_size=4).epoch(0)] == [4, 4]
    assert batches_of(store, batch_size=4).num_batches == 2
    (only,) = batches_of(store, batch_size=64).epoch(0)
    assert (len(only.rows), only.global_size) == (10, 10)
    assert sorted(only.rows.tolist()) == list(range(10))


def test_crops_are_standardised_before_they_are_transformed():
    store = store_of([10] * 4)
    window = Window(num_samples=8, standardize="lead", num_crops=1)
    raw, flipped = batches_of(store), batches_of(store, window=window, transforms=[Flip()])
    for crop, turned in zip(raw.epoch(0), flipped.epoch(0), strict=True):
        torch.testing.assert_close(turned.signal, -standardize(crop.signal, "lead"))


def test_every_seed_epoch_batch_and_transform_has_draws_of_its_own():
    store = store_of([8] * 6)  # as long as the window: what is added is all that differs from the record
    noise = WhiteNoise(amplitude=1.0)

    def added(transforms: list[Transform], *, seed: int = 0, epoch: int = 0) -> torch.Tensor:
        batches = batches_of(store, batch_size=1, transforms=transforms, seed=seed).epoch(epoch)
        return torch.stack(
            [batch.signal[0] - MV_PER_UNIT * torch.tensor(store.record(batch.rows[0])) for batch in batches]
        )

    once = added([noise])
    others = [once.roll(1, dims=0), added([noise], seed=1), added([noise], epoch=1), added([noise, noise]) - once]
    for other in others:
        assert (once - other).abs().amax(dim=(1, 2)).min() > 0.1


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(8, 20), min_size=1, max_size=9),
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 4),
    data=st.data(),
)
def test_an_evaluation_sees_every_row_once_in_order_over_all_workers(lengths, batch_size, world_size, data):
    store = store_of(lengths)
    rows = np.array(data.draw(st.permutations(range(len(lengths)))))
    seen = []
    for rank in range(world_size):
        share = {"batch_size": batch_size, "rank": rank, "world_size": world_size}
        for crops, of_rows in eval_batches(store, rows, window=RAW, device=CPU, **share):
            assert crops.shape == (len(of_rows), 3, NUM_LEADS, 8)
            assert 1 <= len(of_rows) <= batch_size
            seen += of_rows.tolist()
            for record, row in zip(crops, of_rows.tolist(), strict=True):
                slack = lengths[row] - 8
                signal = store.record(row) * MV_PER_UNIT
                for crop, start in zip(record, (0, (slack + 1) // 2, slack), strict=True):
                    assert np.array_equal(crop.numpy(), signal[:, start : start + 8])
    assert seen == rows.tolist()


def test_evaluation_crops_are_each_standardised_for_itself():
    store = store_of([12, 9])
    window = Window(num_samples=8, standardize="record", num_crops=2)
    ((crops, _),) = eval_batches(store, np.arange(2), window=window, batch_size=9, device=CPU)
    torch.testing.assert_close(crops.mean(dim=(2, 3)), torch.zeros(2, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(crops.std(dim=(2, 3), correction=0), torch.ones(2, 2))


@given(total=st.integers(0, 50), world_size=st.integers(1, 9))
def test_workers_share_as_equally_as_possible(total, world_size):
    shares = [list(worker_share(total, rank, world_size)) for rank in range(world_size)]
    assert shares == [part.tolist() for part in np.array_split(np.arange(total), world_size)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": np.array([], dtype=np.int64)}, "training needs at least one record, got none"),
        ({"window": Window(num_samples=11, standardize="none", num_crops=1)}, "window of 11 samples, got 6 shorter"),
        ({"targets": np.zeros((5, 2), np.float32)}, "targets must have a row for each of the 6 rows, got 5"),
        ({"batch_size": 2, "world_size": 3}, "batch_size=2 and 6 training records: lower cluster.workers_per_trial"),
        ({"batch_size": 64, "world_size": 7}, "each of 7 workers needs a record of every batch"),
    ],
)
def test_training_that_cannot_be_batched_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        batches_of(store_of([10] * 6), **changes)


def test_an_evaluation_of_a_record_shorter_than_the_window_is_refused():
    with pytest.raises(ValueError, match="window of 8 samples, got 1 shorter"):
        next(eval_batches(store_of([9, 7]), np.arange(2), window=RAW, batch_size=2, device=CPU))


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_the_workers_is_refused(rank):
    with pytest.raises(ValueError, match="rank must lie between 0 and world_size - 1"):
        worker_share(10, rank, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0, "standardize": "none", "num_crops": 1}, "must be at least 1, got 0, 1"),
        ({"num_samples": 9, "standardize": "none", "num_crops": 0}, "must be at least 1, got 9, 0"),
        ({"num_samples": 9, "standardize": "rows", "num_crops": 1}, "must be record, lead or none, got 'rows'"),
    ],
)
def test_a_window_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Window(**arguments)
