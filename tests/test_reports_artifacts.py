"""What command=artifacts leaves: embeddings with their records, maps, sheets, and one page of several checkpoints."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.decomposition import PCA

from reports.checkpoints.artifacts import Source, embeddings_of, make_artifacts
from reports.checkpoints.embedding_map import groups_of, neighbours_map, principal_components, scatter
from reports.checkpoints.error_sheets import seen
from reports.checkpoints.reconstruction import reconstructed
from trainables.checkpoint import keep_run, load
from trainables.loops import train
from trainables.state import PRETEXT, TrainState
from trainables.workers import Workers

ALONE = Workers()


@pytest.fixture(scope="module")
def folders(put_checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp("kept")
    return [put_checkpoint(root / name, trial) for name, trial in (("a", 1), ("b", None))]


def source_of(folder, recordings, split="valid"):
    return Source(folder, load(folder), recordings.store, recordings.labels, split, getattr(recordings.split, split))


def test_embeddings_lie_in_the_order_of_their_records_and_the_head_makes_the_answers_of_them(folders, tiny_recordings):
    source = source_of(folders[0], tiny_recordings)
    page = make_artifacts([source], name="x", num_records=0, workers=ALONE)
    embeddings = np.load(page.parent / "embeddings.npy")
    table = pd.read_parquet(page.parent / "embeddings.parquet")
    index = tiny_recordings.store.index.iloc[source.rows]
    assert table["record_id"].tolist() == index["record_id"].astype(str).tolist()
    assert "patient_id" not in table
    for position, row in enumerate(source.rows):
        record = seen(source.store, int(row), source.checkpoint.run.data, torch.device("cpu"))
        with torch.no_grad():
            crops = source.checkpoint.classifier.encoder(record.crops)
        np.testing.assert_allclose(embeddings[position], crops.mean(dim=0).numpy(), atol=1e-5)
    np.testing.assert_array_equal(embeddings, embeddings_of(source, ALONE))


def test_several_checkpoints_are_on_one_page(folders, tiny_recordings):
    sources = [source_of(folder, tiny_recordings) for folder in folders]
    page = make_artifacts(sources, name="several", num_records=1, workers=ALONE)
    assert page == folders[0] / "artifacts" / "several" / "index.html"
    text = page.read_text()
    assert [">a, trial 1<" in text, ">b<" in text] == [True, True]
    assert text.count("data:image/svg+xml;base64,") == 4  # gradients and rollout of a record each
    for folder in folders:
        content = json.loads((folder / "artifacts" / "several" / "artifacts.json").read_text())
        (record,) = content["records"]
        assert [sheet["method"] for sheet in record["sheets"]] == ["integrated gradients", "attention rollout"]
        assert "holds no pretext.safetensors" in record["reasons"][0]
    assert re.search(r"No reconstruction: the checkpoint holds no", text)


def test_a_pass_over_the_test_fold_is_recorded_once(folders, tiny_recordings):
    make_artifacts([source_of(folders[1], tiny_recordings, "test")], name="t", num_records=1, workers=ALONE)
    events = [json.loads(line) for line in (folders[1] / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["test_fold_opened"]
    assert not (folders[0] / "events.jsonl").exists()


@pytest.mark.parametrize("stages", ["joint", "pretrain"])
def test_a_masked_methods_checkpoint_keeps_what_reconstructs(stages, compose_run, tiny_recordings, tmp_path):
    run = compose_run(f"task={stages}", "task.pretrain.num_epochs=1", "task.finetune.num_epochs=1")
    state = TrainState("val/auroc", maximize=True)
    for _ in train(run, state, tiny_recordings, ALONE):
        state.save(tmp_path)
    best = {"epoch": state.best.epoch, "value": 0.5, "metrics": {}}
    kept = keep_run(tmp_path, run, tiny_recordings, best, "val/auroc")
    assert (kept / PRETEXT).exists()
    checkpoint = load(kept)
    record = seen(tiny_recordings.store, 0, run.data, torch.device("cpu"))
    found = reconstructed(kept, run, record, seed=0)
    window = run.data.window_samples
    there = ~np.isnan(found["overlay_mv"])
    assert there.shape == record.signal_mv.shape
    assert not there[:, window:].any()
    hidden = there[:, :window].mean()
    assert hidden == pytest.approx(1 - run.model.mask_ratio, abs=0.3) or hidden == pytest.approx(
        run.model.mask_ratio, abs=0.3
    )
    mean_mv = np.abs(found["overlay_mv"][there] - record.signal_mv[there]).mean()
    assert mean_mv < 3 * record.signal_mv.std()  # in mV, about the recorded
    if stages == "pretrain":  # the encoder that is kept is the one that reconstructs
        from trainables.files import read_tensors

        pretext = read_tensors(kept / PRETEXT)[0]
        for name, tensor in checkpoint.classifier.encoder.state_dict().items():
            torch.testing.assert_close(pretext[f"encoder.{name}"], tensor)


@given(arrays(np.float64, (9, 4), elements=st.floats(-10, 10)))
def test_principal_components_are_those_of_scikit_learn_but_for_the_sign(embeddings):
    places, shares = principal_components(embeddings)
    if np.linalg.matrix_rank(embeddings - embeddings.mean(axis=0), tol=1e-3) < 3:
        return
    reference = PCA(2).fit(embeddings)
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_, atol=1e-8)
    distances = [np.square(p[:, None] - p[None]).sum(-1) for p in (places, reference.transform(embeddings))]
    if np.diff(reference.singular_values_)[0] < -1e-3:
        np.testing.assert_allclose(*distances, atol=1e-5)


def test_one_record_or_equal_ones_have_a_map_too():
    for embeddings in (np.ones((1, 4)), np.ones((5, 4))):
        places, shares = principal_components(embeddings)
        assert places.shape == (len(embeddings), 2)
        assert shares.tolist() == [0, 0]
        assert "nan" not in scatter(places, groups_of(np.zeros((len(embeddings), 1)), ["A"]), "x")


def test_a_map_of_neighbours_needs_some_records_and_the_library(monkeypatch):
    import sys

    assert "10 to 5000 records, these are 3" in neighbours_map(np.zeros((3, 2)))
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert "needs scikit-learn" in neighbours_map(np.zeros((30, 2)))


def test_every_record_is_in_one_group_and_groups_are_told_apart_by_shape():
    targets = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [1, 0]])
    groups = groups_of(targets, ["A", "B"])
    assert {group.name: group.rows.tolist() for group in groups} == {
        "none of the classes": [3],
        "several classes": [2],
        "A": [0, 4],
        "B": [1],
    }
    many = groups_of(np.eye(12), [f"c{n}" for n in range(12)])
    assert sorted(row for group in many for row in group.rows) == list(range(12))
    assert len({group.shape for group in many}) == len(many)
