import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.record import DataError
from data.store import prepare
from models.classifier import Classifier
from trainables.checkpoint import DESCRIPTION, WEIGHTS, check_encoder, contract_of, describe, load
from trainables.files import StorageError
from trainables.predict import predict
from trainables.pretrain import fresh_encoder
from trainables.recordings import open_recordings, preparation_of, reader_of
from trainables.workers import Workers

ALONE = Workers()


@pytest.fixture(scope="module")
def run(compose_run):
    """At half the rate of the recordings, with its leads in an order of its own."""
    return compose_run("data.leads=[V2,aVR,II]", "data.sampling_rate_hz=50", "data.lowpass_hz=20")


@pytest.fixture(scope="module")
def recordings(run, tmp_path_factory):
    store_dir = tmp_path_factory.mktemp("stores")
    store = prepare(reader_of(run.data), preparation_of(run.data), store_dir, name="half", max_unreadable_share=0.0)
    return open_recordings(run, store.path)


@pytest.fixture(scope="module")
def classifier(run, recordings):
    torch.manual_seed(0)
    made = Classifier(fresh_encoder(run), len(recordings.labels.classes), drop_path=0.1, head_init_std=1.0)
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def written(run, recordings, classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("best_1")
    save_file(classifier.state_dict(), folder / WEIGHTS)
    contract = contract_of(run, recordings)
    describe(folder, {"trial": 3, "contract": contract, "run": run.model_dump(mode="json", by_alias=True)})
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy to damage."""
    return shutil.copytree(written, tmp_path / "best_1")


def described(folder, **changes):
    """Put other values into the description."""
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(function, *arguments, error=StorageError):
    with pytest.raises(error) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_loaded_model_answers_as_the_one_in_memory_to_the_bit(run, recordings, classifier, written):
    checkpoint = load(written)
    rows = recordings.split.test
    ours, theirs = (
        predict(model, recordings.store, rows, run.data, ALONE, kind="multilabel")
        for model in (classifier, checkpoint.classifier)
    )
    assert np.array_equal(ours, theirs)
    assert not checkpoint.classifier.training
    assert checkpoint.run == run
    assert checkpoint.description["trial"] == 3
    assert checkpoint.classes == list(recordings.labels.classes)


def test_a_raw_recording_is_answered_as_its_prepared_record(run, recordings, classifier, written):
    checkpoint, reader = load(written), reader_of(run.data)
    table = reader.table()
    rows = recordings.split.test
    expected = predict(classifier, recordings.store, rows, run.data, ALONE, kind="multilabel")
    for row, answer in zip(rows, expected, strict=True):
        record_id = recordings.store.index["record_id"].iloc[row]
        raw = reader.read(table[table["record_id"] == record_id].iloc[0].to_dict())
        assert (len(raw.leads), raw.sampling_rate_hz) == (12, 100)
        shuffled = np.random.default_rng(row).permutation(12)
        leads = [raw.leads[lead].lower() for lead in shuffled]
        found = checkpoint.predict(raw.signal_mv[shuffled], raw.sampling_rate_hz, leads)
        np.testing.assert_allclose(found, answer, rtol=1e-4)  # float32 in batches of another size


@pytest.mark.parametrize(
    ("signal", "rate_hz", "leads", "message"),
    [
        (np.ones((2, 500)), 100, ["II", "V2"], "lacks the leads aVR"),
        (np.ones((3, 500)), 100, ["II", "V2", "X"], "lead 'X' is unknown"),
        (np.ones((3, 50)), 100, ["II", "V2", "aVR"], "must last at least 1.2 s, got 0.5 s"),
        (np.full((3, 500), np.nan), 100, ["II", "V2", "aVR"], "every sample must be a number"),
        (np.ones((2, 500)), 100, ["II", "V2", "aVR"], "a signal of 2 leads must name each once"),
        (np.ones(500), 100, ["II", "V2", "aVR"], "a signal of 500 leads must name each once"),
        (np.ones((3, 500)), 0, ["II", "V2", "aVR"], "sampling_rate_hz must be positive, got 0"),
    ],
)
def test_a_raw_recording_that_breaks_the_contract_is_refused(written, signal, rate_hz, leads, message):
    assert message in refused(load(written).predict, signal, rate_hz, leads, error=DataError)


def test_the_contract_says_what_the_weights_were_trained_on(written):
    contract = json.loads((written / DESCRIPTION).read_text())["contract"]
    assert contract | {"classes": 5} == {
        "sampling_rate_hz": 50.0,
        "highpass_hz": 0.67,
        "lowpass_hz": 20.0,
        "filter_order": 5,
        "unit": "mV",
        "standardize": "record",
        "leads": ["V2", "aVR", "II"],
        "window_s": 1.2,
        "eval_crops": 2,
        "label_protocol": "superdiagnostic",
        "label_kind": "multilabel",
        "classes": 5,
    }


@pytest.mark.parametrize("cut", [0, 4, 200, -100])
def test_damaged_weights_are_refused(folder, cut):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:cut])
    assert "cannot be read as safetensors" in refused(load, folder)


def test_a_damaged_header_is_refused(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[:8] = b"\xff" * 8
    (folder / WEIGHTS).write_bytes(content)
    assert "cannot be read as safetensors" in refused(load, folder)


def test_missing_files_are_named(folder):
    (folder / WEIGHTS).unlink()
    assert WEIGHTS in refused(load, folder)
    (folder / DESCRIPTION).unlink()
    assert f"{folder} holds no {DESCRIPTION}: name a folder such as" in refused(load, folder)
    assert "holds no" in refused(load, folder / "nowhere")


def test_a_description_of_another_format_is_refused(folder):
    described(folder, format=99)
    assert "must be of format 2, got 99" in refused(load, folder)
    (folder / DESCRIPTION).write_text("[1, 2]")
    assert "must be of format 2, got None" in refused(load, folder)
    (folder / DESCRIPTION).write_text('{"format": 2,')
    assert f"{DESCRIPTION} cannot be read" in refused(load, folder)


def test_a_description_without_a_run_of_ours_is_refused(folder):
    described(folder, run={"seed": 0})
    assert "describes no run that can be built here" in refused(load, folder)
    described(folder, contract=None)
    assert "describes no run" in refused(load, folder)


def test_weights_of_another_model_are_refused_with_the_first_difference(folder, run):
    other = run.model_dump(mode="json", by_alias=True)
    other["model"]["encoder"]["num_sep_tokens"] = 0
    described(folder, run=other)
    message = refused(load, folder, error=DataError)
    assert message.endswith(
        f"{WEIGHTS} does not fit the model of its {DESCRIPTION}: encoder.positions must be 4x64, it is 5x64"
    )


def test_a_description_cannot_name_a_class_of_others(folder, run):
    other = run.model_dump(mode="json", by_alias=True)
    other["model"]["encoder"] = {"_target_": "os.system", "command": "true"}
    described(folder, run=other)
    assert "_target_ must be" in refused(load, folder, error=ValueError)


def test_recordings_that_fit_the_contract_pass(run, written):
    assert check_encoder(written, run.data)["trial"] == 3
    check_encoder(written, run.data.model_copy(update={"leads": ["II"], "eval_crops": 7, "train_folds": [1]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling_rate_hz": 100.0}, "type data.sampling_rate_hz=50.0"),
        ({"lowpass_hz": None, "filter_order": 3}, "type data.lowpass_hz=20.0 data.filter_order=5"),
        ({"window_s": 2.4}, "type data.window_s=1.2"),
        ({"standardize": "none"}, 'type data.standardize="record"'),
        ({"leads": ["II", "V6"]}, "never saw the leads V6; type data.leads=[V2,aVR,II] or some of these"),
    ],
)
def test_recordings_prepared_otherwise_are_refused_with_what_to_type(run, written, changes, message):
    assert message in refused(check_encoder, written, run.data.model_copy(update=changes), error=DataError)
