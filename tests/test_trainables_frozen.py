"""Embeddings of a frozen encoder, computed once for all trials of a study: what each would have computed."""

from dataclasses import replace

import pytest
import torch

from trainables import frozen, probe
from trainables.frozen import FILE, digest_of, frozen_embeddings, in_batches
from trainables.pretrain import fresh_encoder
from trainables.probe import crop_embeddings, embed
from trainables.recordings import KeptEmbeddings, window_of
from trainables.trial import Assignment, epochs
from trainables.workers import Workers

ALONE = Workers()
LARGE = 1e12
LINPROBE = "task.finetune.mode=linprobe"


@pytest.fixture
def started(compose_run, put_checkpoint, tmp_path):
    """Composes runs that start from one checkpoint."""
    checkpoint = put_checkpoint(tmp_path / "checkpoint")
    return lambda *typed: compose_run("task=finetune", f"task.encoder={checkpoint}", *typed)


@pytest.fixture
def computing(monkeypatch):
    """How many records each pass through an encoder has embedded; one that is only mapped is none."""
    passes = []
    really = probe.crop_embeddings

    def counted(encoder, store, rows, *rest):
        passes.append(len(rows))
        return really(encoder, store, rows, *rest)

    monkeypatch.setattr(frozen, "crop_embeddings", counted)
    return passes


def results_of(run, store, folder, shared):
    assignment = Assignment(
        number=1,
        run=run,
        folder=folder,
        store=store.path,
        metric="val/auroc",
        maximize=True,
        num_gpus=0.0,
        cpus_per_worker=1,
        embeddings=shared,
        max_kept_bytes=LARGE,
    )
    results = list(epochs(Assignment.from_config(assignment.to_config()), ALONE))
    return [{key: value for key, value in result.items() if key != "seconds"} for result in results]


@pytest.mark.parametrize("typed", [(LINPROBE,), (LINPROBE, "task.folds=2", "data.name=another"), ()])
def test_trials_share_what_a_frozen_encoder_gives_and_report_what_they_would_alone(
    started, tiny_store, tmp_path, computing, typed
):
    first, second = started(*typed), started("task.finetune.lr=5e-3", *typed)
    alone = results_of(second, tiny_store, tmp_path / "alone", None)
    num_passes = len(computing)
    results_of(first, tiny_store, tmp_path / "1", tmp_path / "shared")
    kept = list((tmp_path / "shared").rglob(FILE))
    # the first head and the steps of a linear probe read the same records
    assert len(computing) - num_passes == len(kept) <= num_passes
    computed = len(computing)
    assert results_of(second, tiny_store, tmp_path / "2", tmp_path / "shared") == alone
    assert len(computing) == computed


def test_embeddings_are_those_of_the_probe_and_of_the_validation(tiny_run, tiny_recordings, tmp_path):
    encoder, rows = fresh_encoder(tiny_run), tiny_recordings.split.valid
    sharing = replace(tiny_recordings, embeddings=KeptEmbeddings(tmp_path, LARGE))
    for recordings in (tiny_recordings, sharing, sharing):  # computed, computed and kept, mapped
        middles = frozen_embeddings(tiny_run, encoder, recordings, rows, ALONE, num_crops=1)[:, 0]
        assert torch.equal(middles, embed(encoder, recordings.store, rows, tiny_run.data, ALONE))
        crops = frozen_embeddings(tiny_run, encoder, recordings, rows, ALONE, num_crops=tiny_run.data.eval_crops)
        expected = list(crop_embeddings(encoder, recordings.store, rows, window_of(tiny_run.data), ALONE))
        assert [torch.equal(*both) for both in zip(in_batches(crops, ALONE), expected, strict=True)] == [True]


def test_other_weights_rows_crops_or_preprocessing_are_other_embeddings(compose_run, tiny_run, tiny_recordings):
    encoder, rows, device = fresh_encoder(tiny_run), tiny_recordings.split.train, torch.device("cpu")
    digests = [
        digest_of(tiny_run, encoder, tiny_recordings, rows, 1, device),
        digest_of(tiny_run, fresh_encoder(compose_run("seed=1")), tiny_recordings, rows, 1, device),
        digest_of(tiny_run, encoder, tiny_recordings, rows[1:], 1, device),
        digest_of(tiny_run, encoder, tiny_recordings, rows, 2, device),
        digest_of(compose_run("data.standardize=lead"), encoder, tiny_recordings, rows, 1, device),
        digest_of(tiny_run, encoder, tiny_recordings, rows, 1, torch.device("cuda")),
    ]
    assert len(set(digests)) == len(digests)
    assert digest_of(compose_run("task.finetune.lr=0.1"), encoder, tiny_recordings, rows, 1, device) == digests[0]


def test_an_encoder_with_batch_norm_is_told_by_its_counters_too(compose_run, tiny_recordings):
    run = compose_run("model=simclr", "encoder=resnet1d")
    encoder, rows, device = fresh_encoder(run), tiny_recordings.split.train, torch.device("cpu")
    before = digest_of(run, encoder, tiny_recordings, rows, 1, device)
    counters = [buffer for name, buffer in encoder.named_buffers() if name.endswith("num_batches_tracked")]
    counters[0].add_(1)
    assert digest_of(run, encoder, tiny_recordings, rows, 1, device) != before


def test_a_damaged_file_is_computed_again(tiny_run, tiny_recordings, tmp_path, computing):
    encoder, rows = fresh_encoder(tiny_run), tiny_recordings.split.valid
    sharing = replace(tiny_recordings, embeddings=KeptEmbeddings(tmp_path, LARGE))
    expected = frozen_embeddings(tiny_run, encoder, sharing, rows, ALONE, num_crops=1)
    (kept,) = tmp_path.rglob(FILE)
    kept.write_bytes(kept.read_bytes()[:200])
    assert torch.equal(frozen_embeddings(tiny_run, encoder, sharing, rows, ALONE, num_crops=1), expected)
    assert len(computing) == 2


def test_no_more_is_kept_than_may_be(tiny_run, tiny_recordings, tmp_path):
    encoder, rows = fresh_encoder(tiny_run), tiny_recordings.split.valid
    sharing = replace(tiny_recordings, embeddings=KeptEmbeddings(tmp_path, 10.0))
    assert len(frozen_embeddings(tiny_run, encoder, sharing, rows, ALONE, num_crops=1)) == len(rows)
    assert not list(tmp_path.rglob(FILE))


def test_what_training_changes_in_a_mapped_tensor_reaches_no_other_trial(tiny_run, tiny_recordings, tmp_path):
    encoder, rows = fresh_encoder(tiny_run), tiny_recordings.split.valid
    sharing = replace(tiny_recordings, embeddings=KeptEmbeddings(tmp_path, LARGE))
    expected = frozen_embeddings(tiny_run, encoder, sharing, rows, ALONE, num_crops=1)
    frozen_embeddings(tiny_run, encoder, sharing, rows, ALONE, num_crops=1).zero_()
    assert torch.equal(frozen_embeddings(tiny_run, encoder, sharing, rows, ALONE, num_crops=1), expected)
