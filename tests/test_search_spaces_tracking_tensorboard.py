import errno
import logging
import os
import struct
from collections import defaultdict
from datetime import datetime

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.record_writer import masked_crc32c

from search_spaces.schema import TensorboardTracking
from search_spaces.tracking import make_tracker
from search_spaces.tracking_tensorboard import TensorboardRuns
from trainables.study import StudyFolder

TENSORBOARD = TensorboardTracking(name="tensorboard")
PARAMS = {"task.pretrain.lr": 1e-3, "model.size": "tiny", "model.leads": ["I", "V2"], "flag": True, "none": None}


@pytest.fixture
def study(tmp_path):
    folder = StudyFolder(tmp_path / "a study")
    folder.record("study_started", store="ab12")
    return folder


def start(study, number):
    study.record("trial_started", trial=number, params=PARAMS)


def epoch(study, number, at):
    metrics = {"train/loss": 1 / at, "val/auroc": 0.5 + at / 10}
    return study.record("epoch", trial=number, epoch=at, stage="finetune", metrics=metrics, seconds=1.5)


def end(study, number, state="COMPLETE", value=0.7, reason=None, epochs=2):
    study.record("trial_ended", trial=number, state=state, value=value, reason=reason, epochs=epochs, seconds=3.0)


def told(study, number):
    """The events of a trial's one file; every record's checksums hold."""
    [path] = (study.path / "tensorboard" / f"trial_{number:04d}").iterdir()
    content, at = path.read_bytes(), 0
    while at < len(content):
        length = struct.unpack("Q", content[at : at + 8])[0]
        record = content[at + 12 : at + 12 + length]
        assert struct.unpack("I", content[at + 8 : at + 12])[0] == masked_crc32c(content[at : at + 8])
        assert struct.unpack("I", content[at + 12 + length : at + 16 + length])[0] == masked_crc32c(record)
        yield Event.FromString(record)
        at += length + 16


def scalars(study, number):
    found = defaultdict(list)
    for event in told(study, number):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found[value.tag].append((event.step, pytest.approx(value.simple_value)))
    return found


def texts(study, number):
    values = [value for event in told(study, number) for value in event.summary.value]
    return {value.tag: value.tensor.string_val[0].decode() for value in values if value.tensor.string_val}


def hyperparameters(study, number):
    for event in told(study, number):
        for value in event.summary.value:
            data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
            if value.tag == "_hparams_/session_start_info":
                found = data.session_start_info.hparams
                return {name: getattr(found[name], found[name].WhichOneof("kind")) for name in found}
    return None


def test_every_trial_is_a_run_with_its_choices_its_epochs_and_its_end(study):
    with make_tracker(TENSORBOARD, study) as track:
        for number in (0, 1):
            start(study, number)
            recorded = [epoch(study, number, at) for at in (1, 2)]
            track()
        study.record("exploit", trial=0, donor=1, epoch=2, params={"task.pretrain.lr": 2e-3})
        end(study, 0)
        end(study, 1, "FAIL", None, "RuntimeError: a | b")
    assert scalars(study, 0) == {
        "train/loss": [(1, 1.0), (2, 0.5)],
        "val/auroc": [(1, 0.6), (2, 0.7)],
        "trial/value": [(2, 0.7)],
    }
    assert scalars(study, 1)["val/auroc"] == [(1, 0.6), (2, 0.7)]
    assert "trial/value" not in scalars(study, 1)
    chosen = {"task.pretrain.lr": 1e-3, "model.size": "tiny", "model.leads": '["I", "V2"]', "flag": True}
    assert {"none": "null"} | chosen == hyperparameters(study, 0)
    assert "| state | COMPLETE |" in texts(study, 0)["trial/end/text_summary"]
    assert "| donor | 1 |" in texts(study, 0)["trial/exploit/text_summary"]
    assert "| reason | RuntimeError: a \\| b |" in texts(study, 1)["trial/end/text_summary"]
    at = datetime.fromisoformat(recorded[-1]["time"]).timestamp()
    assert at in [event.wall_time for event in told(study, 1) if event.step == 2]


def test_a_driver_that_is_killed_in_the_middle_of_a_line_leaves_nothing_twice_and_nothing_broken(study):
    for number in (0, 1):
        start(study, number)
        epoch(study, number, 1)
    end(study, 1, epochs=1)
    killed = TensorboardRuns(study)
    for event in study.read_events():
        killed.take_in(event)
    killed.settle()
    [path] = (study.path / "tensorboard" / "trial_0000").iterdir()
    with path.open("ab") as file:
        file.write(b"\x07")  # of the next record
    [ended] = (study.path / "tensorboard" / "trial_0001").iterdir()
    before = (ended.stat().st_ino, ended.stat().st_mtime_ns)
    with make_tracker(TENSORBOARD, study):
        epoch(study, 0, 2)
        end(study, 0)
    assert scalars(study, 0)["val/auroc"] == [(1, 0.6), (2, 0.7)]
    assert (ended.stat().st_ino, ended.stat().st_mtime_ns) == before
    killed.close()


def test_what_was_told_is_on_the_disk_while_the_search_goes_on(study):
    start(study, 0)
    epoch(study, 0, 1)
    runs = TensorboardRuns(study)
    for event in study.read_events():
        runs.take_in(event)
    runs.settle()
    assert scalars(study, 0)["val/auroc"] == [(1, 0.6)]
    runs.close()


def test_a_tracker_that_is_switched_on_after_the_study_has_finished_gets_it_whole(study):
    for number in range(3):
        start(study, number)
        epoch(study, number, 1)
        end(study, number, epochs=1)
    with make_tracker(TENSORBOARD, study):
        pass
    assert [scalars(study, number)["val/auroc"] for number in range(3)] == [[(1, 0.6)]] * 3


def test_a_full_disk_ends_the_tracking_with_one_line(study, monkeypatch, caplog):
    monkeypatch.setattr("tensorboardX.record_writer.open_file", full)
    with make_tracker(TENSORBOARD, study):
        start(study, 0)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == ["tracking stopped, the search goes on: [Errno 28] No space left on device"]


def full(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
