import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal as scipy_signal

from data.index_csv import IndexCsv
from data.labels import LabelProtocol
from data.ptb_xl import PTBXL
from data.record import LEADS, TABLE_COLUMNS, DataError, Record, RecordError
from data.store import FORMAT_VERSION, MIN_VARIATION_MV, MV_PER_UNIT, Preparation, Store, prepare, prepare_signal
from data.synthetic import Synthetic

AS_IT_IS = Preparation(100, LEADS, None, None, filter_order=5, min_duration_s=1)
FILTERED = replace(AS_IT_IS, highpass_hz=0.67, lowpass_hz=40)


@dataclass(frozen=True)
class InMemory:
    """A reader of arrays; `None` among the signals is a record that cannot be read."""

    signals_mv: tuple[Any, ...]
    leads: tuple[str, ...] = LEADS
    rate_hz: float = 100
    name: str = "memory"
    reports: tuple[str | None, ...] | None = None  # None: the table has no such column
    quality: tuple[list[str] | None, ...] | None = None  # likewise

    def table(self) -> pd.DataFrame:
        rows = [
            {
                "record_id": f"r{number}",
                "patient_id": f"p{number // 2}",
                "fold": number % 10 + 1,
                "codes": ["NORM"] if number % 2 else ["IMI", "AFIB"],
                "age": 50.5,
                "sex": None if number % 3 else "female",
                "device": None,
                "site": "1",
                "path": f"{number}",
            }
            for number in range(len(self.signals_mv))
        ]
        table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
        given = {"report": self.reports, "quality": self.quality}
        return table.assign(**{name: list(cells) for name, cells in given.items() if cells is not None})

    def read(self, row: Mapping[str, Any]) -> Record:
        signal_mv = self.signals_mv[int(row["path"])]
        if signal_mv is None:
            raise RecordError(f"record {row['record_id']}: it is lost")
        return Record(row["record_id"], np.asarray(signal_mv, dtype=np.float32), self.rate_hz, self.leads)

    def protocols(self) -> dict[str, LabelProtocol]:
        of_code = {"NORM": ("NORM",), "IMI": ("MI",)}
        return {"heart": LabelProtocol("heart", "multilabel", ("NORM", "MI"), of_code)}

    def fingerprint(self) -> str:
        return self.name


def noise(num_samples=500, seed=0, num_leads=12):
    return np.random.default_rng(seed).normal(0, 0.5, (num_leads, num_samples)).astype(np.float32)


def record(signal_mv, leads=LEADS, rate_hz=100.0):
    return Record("r1", np.asarray(signal_mv, dtype=np.float32), rate_hz, leads)


def built(reader, folder, preparation=AS_IT_IS, **keys):
    keys = {"name": "memory", "max_unreadable_share": 0.0} | keys
    return prepare(reader, preparation, folder, **keys)


def only_folder(store_dir: Path) -> list[str]:
    return sorted(path.name for path in store_dir.iterdir() if not path.name.endswith(".lock"))


# --- prepare_signal


def test_a_record_in_the_right_form_is_left_as_it_is():
    signal_mv = noise()
    np.testing.assert_array_equal(prepare_signal(record(signal_mv), AS_IT_IS), signal_mv)


@settings(max_examples=20, deadline=None)
@given(st.permutations(LEADS), st.lists(st.sampled_from(LEADS), min_size=1, unique=True))
def test_leads_are_found_by_name_whatever_their_order(order, wanted):
    signal_mv = noise(200)
    shuffled = record(signal_mv[[LEADS.index(lead) for lead in order]], leads=tuple(order))
    prepared = prepare_signal(shuffled, replace(AS_IT_IS, leads=tuple(wanted)))
    np.testing.assert_array_equal(prepared, signal_mv[[LEADS.index(lead) for lead in wanted]])


def test_the_filter_is_scipys_zero_phase_butterworth_over_the_whole_record():
    signal_mv = noise(1000)
    sections = np.concatenate(
        [
            scipy_signal.butter(5, 0.67, "highpass", fs=100, output="sos"),
            scipy_signal.butter(5, 40, "lowpass", fs=100, output="sos"),
        ]
    )
    expected = scipy_signal.sosfiltfilt(sections, signal_mv, axis=-1)
    np.testing.assert_array_equal(prepare_signal(record(signal_mv), FILTERED), expected.astype(np.float32))


def tone(frequency_hz, rate_hz, duration_s=20.0):
    times_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    return np.tile(np.sin(2 * np.pi * frequency_hz * times_s), (12, 1))


def test_the_pass_band_passes_and_wander_and_mains_do_not():
    preparation = replace(FILTERED, sampling_rate_hz=250)
    for frequency_hz, gain in ((1.5, 1), (10, 1), (25, 1), (0.05, 0), (100, 0)):
        middle = prepare_signal(record(tone(frequency_hz, 250), rate_hz=250), preparation)[0, 1000:-1000]
        assert np.sqrt(2 * (middle**2).mean()) == pytest.approx(gain, abs=0.01)


@pytest.mark.parametrize("rate_hz", [500.0, 250.0, 360.0, 128.0, 99.5, 50.0])
def test_any_rate_is_brought_to_the_stores_rate_without_moving_the_signal(rate_hz):
    prepared = prepare_signal(record(tone(5, rate_hz), rate_hz=rate_hz), AS_IT_IS)
    assert prepared.shape[1] == pytest.approx(2000, abs=1)
    np.testing.assert_allclose(prepared[:, 100:1900], tone(5, 100.0)[:, 100:1900], atol=0.01)


def test_an_offset_rings_nowhere_when_a_record_is_resampled():
    prepared = prepare_signal(record(tone(5, 500.0) * 0.001 + 3, rate_hz=500.0), AS_IT_IS)
    np.testing.assert_allclose(prepared, 3, atol=0.002)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.sampled_from([100.0, 500.0, 64.0]), st.integers(0, 11), st.floats(-5, 5))
def test_flat_leads_and_short_records_never_become_nan(num_samples, rate_hz, flat_lead, level):
    signal_mv = noise(num_samples)
    signal_mv[flat_lead] = level
    prepared = prepare_signal(record(signal_mv, rate_hz=rate_hz), replace(FILTERED, min_duration_s=0))
    assert np.isfinite(prepared).all()
    assert prepared.dtype == np.float32


def with_value(value):
    signal_mv = noise()
    signal_mv[3, 7] = value
    return signal_mv


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (record(with_value(np.nan)), "NaN or infinity in aVR"),
        (record(with_value(-np.inf)), "NaN or infinity in aVR"),
        (record(np.ones((12, 500))), "got only flat ones"),
        (record(noise(99)), "must last at least 1 s, got 0.99 s"),
        (record(noise()[:11], leads=LEADS[:11]), "lacks the leads V6 and has I, II.*leave them out of data.leads"),
        (record(noise(), leads=("I", *LEADS[:11])), "must name each once, got I, I, II"),
        (record(noise()[:3]), "a signal of 3 leads must name each once"),
    ],
)
def test_a_record_that_cannot_be_learnt_from_is_refused_by_name(bad, message):
    with pytest.raises(RecordError, match=f"record r1: .*{message}"):
        prepare_signal(bad, AS_IT_IS)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"leads": ("I", "i")}, "data.leads must name each lead once"),
        ({"leads": ("I", "V8")}, "lead 'V8' is unknown"),
        ({"sampling_rate_hz": 0}, "data.sampling_rate_hz must be positive, got 0"),
        ({"lowpass_hz": 50}, "data.lowpass_hz must lie between 0 and 50 Hz, got 50"),
        ({"highpass_hz": -1}, "data.highpass_hz must lie between 0 and 50 Hz, got -1"),
    ],
)
def test_a_preparation_that_cannot_be_is_refused_by_key(keys, message):
    with pytest.raises(DataError, match=message):
        replace(AS_IT_IS, **keys)


# --- building and opening


@settings(max_examples=15, deadline=None)
@given(st.integers(100, 130), st.integers(0, 2**32), st.floats(1e-2, 7))
def test_a_store_gives_back_what_went_in_within_half_a_unit(tmp_path_factory, num_samples, seed, scale):
    signal_mv = (noise(num_samples, seed) * 2 * scale).clip(-32, 32)
    store = built(InMemory((signal_mv, signal_mv[::-1])), tmp_path_factory.mktemp("stores"))
    assert store.record(0).shape == signal_mv.shape
    assert store.record(0).dtype == np.int16
    tolerance = 0.5 * MV_PER_UNIT + 4e-6  # float32 of 32 mV
    np.testing.assert_allclose(store.record(0) * store.mv_per_unit, signal_mv, atol=tolerance)
    np.testing.assert_allclose(store.record(1) * store.mv_per_unit, signal_mv[::-1], atol=tolerance)


@settings(max_examples=10, deadline=None)
@given(st.permutations(LEADS))
def test_the_order_of_a_sources_leads_does_not_show_in_its_store(tmp_path_factory, order):
    signals = [noise(200, seed) for seed in range(3)]
    shuffled = [signal[[LEADS.index(lead) for lead in order]] for signal in signals]
    folder = tmp_path_factory.mktemp("stores")
    straight = built(InMemory(tuple(signals)), folder, FILTERED)
    turned = built(InMemory(tuple(shuffled), leads=tuple(order), name="turned"), folder, FILTERED)
    np.testing.assert_array_equal(straight.signals, turned.signals)


def test_records_of_different_lengths_lie_one_after_another(tmp_path):
    signals = [noise(length, length) for length in (100, 250, 180)]
    store = built(InMemory(tuple(signals)), tmp_path)
    assert store.index["num_samples"].tolist() == [100, 250, 180]
    assert store.index["offset"].tolist() == [0, 1200, 4200]
    flat = np.concatenate([np.rint(signal * 1000).ravel() for signal in signals])
    np.testing.assert_array_equal(store.signals, flat)


def test_the_index_keeps_who_the_records_are_of(tmp_path):
    store = built(InMemory((noise(), noise(seed=1))), tmp_path)
    optional = {"report", "quality"}
    assert {*TABLE_COLUMNS, *optional, "offset", "num_samples", "flat_leads"} == set(store.index.columns)
    first = store.index.iloc[0]
    assert (first["record_id"], first["patient_id"], first["fold"], first["age"]) == ("r0", "p0", 1, 50.5)
    assert store.index["sex"].isna().tolist() == [False, True]
    assert store.index["sex"][0] == "female"
    assert store.index["site"].tolist() == ["1", "1"]
    assert [list(codes) for codes in store.index["codes"]] == [["IMI", "AFIB"], ["NORM"]]


REPORTS = ("sinusrhythmus, unbestÄtigter bericht", None, " \n\t", "", "  心電図 ♥\nzwei Zeilen\n", float("nan"))


def test_the_store_gives_the_reports_of_any_rows(tmp_path):
    signals = tuple(noise(seed=number) for number in range(len(REPORTS)))
    store = Store.open(built(InMemory(signals, reports=REPORTS), tmp_path).path)
    first, second = "sinusrhythmus, unbestÄtigter bericht", "心電図 ♥\nzwei Zeilen"
    assert store.reports(range(len(REPORTS))) == [first, None, None, None, second, None]
    assert store.reports(np.array([4, 1, 0, 4])) == [second, None, first, second]
    assert store.reports([]) == []
    assert store.index["report"].notna().sum() == 2


@pytest.mark.parametrize("reports", [None, (None, None), ("", " ")])
def test_a_source_without_reports_has_none_in_its_store(tmp_path, reports):
    store = built(InMemory((noise(), noise(seed=1)), reports=reports), tmp_path)
    assert store.reports([0, 1]) == [None, None]


def test_reports_stay_with_their_records_where_others_are_left_out(tmp_path):
    reader = InMemory((noise(), None, noise(seed=2)), reports=("one", "two", "three"))
    assert built(reader, tmp_path, max_unreadable_share=0.5).reports([0, 1]) == ["one", "three"]


def test_reports_lie_in_the_index_alone(tmp_path):
    reader = InMemory((noise(), None, None), reports=("Vorhofflimmern",) * 3)
    with pytest.raises(DataError, match="record r1: it is lost") as caught:
        built(reader, tmp_path, max_unreadable_share=0.1)
    store = built(reader, tmp_path, max_unreadable_share=0.9)
    assert "Vorhofflimmern" not in f"{caught.value} {store} {store!r}"
    holding = [path.name for path in tmp_path.rglob("*") if path.is_file() and b"Vorhofflimmern" in path.read_bytes()]
    assert holding == ["index.parquet"]


def test_reports_are_kept_as_arrow_text_which_takes_no_more_memory_than_their_letters(tmp_path):
    texts = tuple(f"{number:04d} " + "x" * 95 for number in range(200))
    store = built(InMemory((noise(100),) * 200, reports=texts), tmp_path)
    assert store.index["report"].memory_usage(index=False, deep=True) < 1.15 * 200 * 100


QUALITY = (["static_noise", "pacemaker"], [], None)


def test_the_store_tells_no_flag_from_no_knowledge_of_flags(tmp_path):
    signals = tuple(noise(seed=number) for number in range(len(QUALITY)))
    store = Store.open(built(InMemory(signals, quality=QUALITY), tmp_path).path)
    assert store.quality(range(len(QUALITY))) == list(QUALITY)
    assert store.quality(np.array([2, 0])) == [None, ["static_noise", "pacemaker"]]
    assert store.index["quality"].isna().tolist() == [False, False, True]
    without = built(InMemory(signals, name="another"), tmp_path)
    assert without.quality([0, 1, 2]) == [None, None, None]


def without_quality(path):
    """Makes of a store what it would have been before flags were kept."""
    index = pq.read_table(path / "index.parquet").drop_columns("quality")
    pq.write_table(index, path / "index.parquet")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["index_sha256"] = hashlib.sha256((path / "index.parquet").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_store_from_before_flags_were_kept_is_found_again_and_knows_of_none(tmp_path):
    reader = InMemory((noise(), noise(seed=1)), reports=("one", "two"), quality=(["pacemaker"], []))
    before = built(reader, tmp_path)
    without_quality(before.path)
    found = built(reader, tmp_path)
    assert only_folder(tmp_path) == [before.path.name]  # nothing was built anew
    assert found.hash == before.hash
    assert found.quality([0, 1]) == [None, None]
    assert found.reports([0, 1]) == ["one", "two"]
    np.testing.assert_array_equal(found.signals, before.signals)


def test_labels_come_from_the_store_alone(tmp_path):
    store = Store.open(built(InMemory((noise(), noise(seed=1))), tmp_path).path)
    labels = store.labels("heart")
    np.testing.assert_array_equal(labels.targets, [[0, 1], [1, 0]])
    assert store.labels("heart", ["MI"]).classes == ("MI",)
    with pytest.raises(DataError, match="no labels 'hearts': task.labels must be one of heart; did you mean heart?"):
        store.labels("hearts")


def test_a_store_is_built_once_and_reused(tmp_path, monkeypatch):
    reader = InMemory((noise(),))
    seen: list[tuple[int, int]] = []
    first = built(reader, tmp_path, progress=lambda done, total: seen.append((done, total)))
    monkeypatch.setattr(InMemory, "read", None)
    second = built(reader, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert first.path == second.path
    assert first.hash == second.hash
    assert first.path.name == f"memory-{first.hash[:12]}"
    assert seen == [(1, 1)]


@pytest.mark.parametrize(
    "changed",
    [
        {"preparation": FILTERED},
        {"preparation": replace(AS_IT_IS, leads=LEADS[:6])},
        {"preparation": replace(AS_IT_IS, min_duration_s=2)},
        {"reader": InMemory((noise(),), name="another")},
    ],
)
def test_another_source_or_preparation_is_another_store(tmp_path, changed):
    first = built(InMemory((noise(),)), tmp_path)
    keys = {"reader": InMemory((noise(),)), "preparation": AS_IT_IS} | changed
    second = built(keys["reader"], tmp_path, keys["preparation"])
    assert first.hash != second.hash
    assert len(only_folder(tmp_path)) == 2


def test_how_a_number_or_lead_is_spelt_does_not_make_another_store(tmp_path):
    first = built(InMemory((noise(),)), tmp_path)
    spelt = Preparation(100.0, tuple(lead.upper() for lead in LEADS), None, None, filter_order=5, min_duration_s=1.0)
    assert built(InMemory((noise(),)), tmp_path, spelt).path == first.path


def test_a_store_pickles_as_its_path(tmp_path):
    store = built(InMemory((noise(20_000),)), tmp_path)
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    received = pickle.loads(sent)
    np.testing.assert_array_equal(received.record(0), store.record(0))
    assert received.preparation == store.preparation


def test_signals_cannot_be_written_to(tmp_path):
    store = built(InMemory((noise(),)), tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        store.record(0)[0, 0] = 1


def test_a_single_flat_lead_is_kept_and_listed(tmp_path):
    signal_mv = noise()
    signal_mv[[2, 9]] = 1.5
    store = built(InMemory((noise(), signal_mv)), tmp_path, FILTERED)
    assert store.index["flat_leads"].tolist() == ["", "III,V4"]
    assert manifest_of(store)["counts"]["records_with_flat_leads"] == 1
    assert np.abs(store.record(1)[[2, 9]]).max() == 0


def test_values_beyond_the_units_are_clipped_and_counted(tmp_path):
    store = built(InMemory((with_value(40), with_value(-1e6))), tmp_path)
    assert store.record(0)[3, 7] == 32767
    assert store.record(1)[3, 7] == -32768
    assert manifest_of(store)["counts"]["clipped_samples"] == 2


def with_values(value, count):
    signal_mv = noise()  # 6,000 samples
    signal_mv[3, :count] = value
    return signal_mv


def test_a_record_is_clipped_up_to_a_share_and_refused_beyond_it(tmp_path):
    store = built(InMemory((with_values(40, 60), with_values(-40, 61))), tmp_path, max_unreadable_share=0.5)
    assert store.index["record_id"].tolist() == ["r0"]
    counts = manifest_of(store)["counts"]
    assert (counts["clipped_samples"], counts["unreadable"]) == (60, 1)
    (reason,) = pd.read_csv(store.path / "unreadable.csv")["reason"]
    assert reason == (
        "record r1: at most 1% of its samples may lie beyond 32.767 mV, got 1.02%: correct the unit of the source "
        "(data.reader.unit, if the reader has one) or leave the record out"
    )


def swing(peak_to_peak_mv):
    """One lead that varies, the others flat."""
    signal_mv = np.zeros((12, 500), np.float32)
    signal_mv[4, ::2] = peak_to_peak_mv
    return signal_mv


def test_a_record_that_varies_by_less_than_any_heart_is_refused(tmp_path):
    signals = (swing(MIN_VARIATION_MV * 1.01), swing(MIN_VARIATION_MV * 0.9))
    store = built(InMemory(signals), tmp_path, max_unreadable_share=0.5)
    assert store.index["record_id"].tolist() == ["r0"]
    (reason,) = pd.read_csv(store.path / "unreadable.csv")["reason"]
    assert reason.startswith("record r1: at least one lead must vary by 0.01 mV from peak to peak after filtering, got")
    assert "at most 0.009 mV: correct the unit of the source (data.reader.unit" in reason


@pytest.mark.parametrize("preparation", [AS_IT_IS, FILTERED])
@pytest.mark.parametrize("factor", [1000, 0.001])
def test_microvolts_and_volts_taken_for_millivolts_are_refused(tmp_path, preparation, factor):
    source = synthetic(tmp_path)
    signals = tuple(source.read(row).signal_mv * factor for row in source.table().to_dict("records"))
    with pytest.raises(DataError, match=f"got {len(signals)} of {len(signals)} .*data.reader.unit"):
        built(InMemory(signals), tmp_path / "stores", preparation, max_unreadable_share=0.9)


@pytest.mark.parametrize("factor", [1000, 1e-6])
def test_inference_takes_what_a_store_would_refuse(factor):
    assert np.isfinite(prepare_signal(record(noise() * factor), FILTERED)).all()


def manifest_of(store):
    return json.loads((store.path / "manifest.json").read_text())


# --- what cannot be read


def test_unreadable_records_are_listed_counted_and_left_out(tmp_path):
    store = built(InMemory((noise(), None, noise(50), noise(seed=2))), tmp_path, max_unreadable_share=0.5)
    assert store.index["record_id"].tolist() == ["r0", "r3"]
    np.testing.assert_array_equal(store.record(1), np.rint(noise(seed=2) * 1000))
    listed = pd.read_csv(store.path / "unreadable.csv")
    assert listed["record_id"].tolist() == ["r1", "r2"]
    assert listed["reason"][0] == "record r1: it is lost"
    assert store.num_unreadable == manifest_of(store)["counts"]["unreadable"] == 2


def test_too_many_unreadable_records_are_refused_with_reasons_a_list_and_a_key(tmp_path):
    reader = InMemory((noise(), None, None, noise()))
    with pytest.raises(
        DataError, match=r"got 2 of 4 \(50.00%\).*record r1: it is lost.*data.max_unreadable_share"
    ) as caught:
        built(reader, tmp_path, max_unreadable_share=0.4)
    (listed,) = only_folder(tmp_path)
    assert str(tmp_path / listed) in str(caught.value)
    assert pd.read_csv(tmp_path / listed)["record_id"].tolist() == ["r1", "r2"]
    store = built(reader, tmp_path, max_unreadable_share=0.5)
    assert only_folder(tmp_path) == [store.path.name]


def test_a_ready_store_is_refused_too_when_the_share_is_lowered(tmp_path):
    reader = InMemory((noise(), None))
    built(reader, tmp_path, max_unreadable_share=0.5)
    with pytest.raises(DataError, match=r"at most 10.00% .* got 1 of 2 .*unreadable.csv"):
        built(reader, tmp_path, max_unreadable_share=0.1)


def test_a_source_without_a_readable_record_is_refused_whatever_the_share(tmp_path):
    with pytest.raises(DataError, match="got 1 of 1"):
        built(InMemory((None,)), tmp_path, max_unreadable_share=0.99)


def test_a_source_without_records_or_with_repeated_ones_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="at least one record, got none"):
        built(InMemory(()), tmp_path)
    repeated = InMemory((noise(), noise())).table().assign(record_id="r5")
    monkeypatch.setattr(InMemory, "table", lambda self: repeated)
    with pytest.raises(DataError, match="record ids must be unique, 1 repeat another's .*r5"):
        built(InMemory((noise(), noise())), tmp_path)


# --- crashes, disks, damage


def crash(done, total):
    raise KeyboardInterrupt


def test_a_build_that_dies_leaves_no_store(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        built(InMemory((noise(),)), tmp_path, progress=crash)
    assert only_folder(tmp_path) == []
    assert len(built(InMemory((noise(),)), tmp_path).index) == 1


def test_what_a_killed_build_left_is_removed_by_the_next_one(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("data.folders.shutil.rmtree", lambda path, ignore_errors: None)  # a killed process tidies nothing
        with pytest.raises(KeyboardInterrupt):
            built(InMemory((noise(),)), tmp_path, progress=crash)
    (left,) = only_folder(tmp_path)
    assert left.endswith(".partial")
    store = built(InMemory((noise(),)), tmp_path)
    assert only_folder(tmp_path) == [store.path.name]


def test_of_two_that_want_one_store_at_once_one_builds_and_both_get_it(tmp_path):
    both_started = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        outcomes = [pool.submit(build_together, tmp_path, both_started) for _ in range(2)]
        (first, built_first), (second, built_second) = [outcome.result(timeout=60) for outcome in outcomes]
    assert built_first != built_second
    assert first.path == second.path
    np.testing.assert_array_equal(first.signals, second.signals)
    assert only_folder(tmp_path) == [first.path.name]


def build_together(folder, both_started):
    seen = []
    both_started.wait()
    store = built(InMemory((noise(),) * 200), folder, progress=lambda done, total: seen.append(done))
    return store, bool(seen)


def test_where_locks_do_not_work_the_first_of_two_builds_is_kept(tmp_path, monkeypatch):
    reader = InMemory((noise(),))

    def another_machine_is_first(done, total):
        shutil.copytree(elsewhere.path, tmp_path / "stores" / elsewhere.path.name)

    monkeypatch.setattr("data.folders.fcntl.flock", no_locks)
    elsewhere = built(reader, tmp_path / "elsewhere")
    store = built(reader, tmp_path / "stores", progress=another_machine_is_first)
    assert only_folder(tmp_path / "stores") == [store.path.name]


def no_locks(file, operation):
    raise OSError(errno.ENOLCK, "no locks available")


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission is denied")],
)
def test_a_disk_that_cannot_be_written_to_ends_in_one_line(tmp_path, monkeypatch, number, told):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("data.folders.os.fsync", fail)
    with pytest.raises(DataError, match=f"{tmp_path}.*{told}.*data.store_dir=DIR"):
        built(InMemory((noise(),)), tmp_path)
    assert only_folder(tmp_path) == []


def test_a_store_dir_below_a_file_ends_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="a part of the path is a file.*data.store_dir"):
        built(InMemory((noise(),)), tmp_path / "file" / "stores")


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-2])


def set_key(path, key, value):
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: cut_short(path / "signals.int16"), "signals.int16 has 11998 bytes .* names 12000"),
        (lambda path: cut_short(path / "index.parquet"), "index.parquet differs from the checksum"),
        (lambda path: (path / "manifest.json").write_text("{"), "Expecting"),
        (lambda path: (path / "manifest.json").write_text("[]"), "not of format 2"),
        (lambda path: set_key(path / "manifest.json", "format", 99), "not of format 2"),
        (lambda path: (path / "manifest.json").unlink(), "No such file"),
        (lambda path: (path / "signals.int16").unlink(), "No such file"),
        (lambda path: (path / "index.parquet").unlink(), "No such file"),
    ],
)
def test_a_damaged_store_says_to_delete_its_folder(tmp_path, damage, told):
    reader = InMemory((noise(),))
    path = built(reader, tmp_path).path
    damage(path)
    with pytest.raises(DataError, match=rf"the store {path} is damaged \(.*{told}.*\): delete the folder"):
        built(reader, tmp_path)
    shutil.rmtree(path)
    assert len(built(reader, tmp_path).index) == 1


def test_a_store_of_the_format_before_is_left_alone_and_not_read(tmp_path, monkeypatch):
    reader = InMemory((noise(),), reports=("normal",))
    with monkeypatch.context() as patch:
        patch.setattr("data.store.FORMAT_VERSION", FORMAT_VERSION - 1)
        before = built(reader, tmp_path)
    after = built(reader, tmp_path)
    assert only_folder(tmp_path) == sorted([before.path.name, after.path.name])
    assert before.hash != after.hash
    with pytest.raises(DataError, match=rf"manifest.json is not of format {FORMAT_VERSION}, .*it is built anew"):
        Store.open(before.path)


def test_a_store_that_is_not_there_says_how_to_build_it(tmp_path):
    with pytest.raises(DataError, match="there is no store at .*command=prepare"):
        Store.open(tmp_path / "nothing")


def test_several_processes_build_the_store_that_one_builds(tmp_path):
    source = Synthetic(tmp_path / "source", 100, num_patients=70, seed=0)
    one = built(source, tmp_path / "one", FILTERED, num_processes=1)
    two = built(source, tmp_path / "two", FILTERED, num_processes=2)
    assert one.hash == two.hash
    assert (one.path / "signals.int16").read_bytes() == (two.path / "signals.int16").read_bytes()
    assert (one.path / "index.parquet").read_bytes() == (two.path / "index.parquet").read_bytes()


class DyingPool:
    """Stands in for a pool whose processes the system kills."""

    def __init__(self, *args):
        """Take what a pool takes."""

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return None

    def submit(self, *args):
        future = Future()
        future.set_exception(BrokenProcessPool())
        return future

    def shutdown(self, wait, cancel_futures):
        """Nothing runs."""


def test_a_process_that_the_system_kills_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("data.store.ProcessPoolExecutor", DyingPool)
    with pytest.raises(DataError, match=r"memory-.* was killed, mostly for want of memory: free some"):
        built(InMemory((noise(),)), tmp_path, num_processes=2)
    assert only_folder(tmp_path) == []


def test_nothing_goes_on_reading_after_a_builder_that_was_killed(tmp_path):
    program = f"""
import os
from pathlib import Path
from data.store import Preparation, prepare
from data.synthetic import Synthetic

if __name__ == "__main__":
    preparation = Preparation(100, ("I",), None, None, filter_order=5, min_duration_s=1)
    source = Synthetic(Path({str(tmp_path)!r}), 100, num_patients=70, seed=0)
    keys = dict(name="x", max_unreadable_share=0, num_processes=2, progress=lambda done, total: os.kill(os.getpid(), 9))
    prepare(source, preparation, Path({str(tmp_path)!r}) / "stores", **keys)
"""
    (tmp_path / "program.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    # returns when the last process that holds the pipe has ended
    ended = subprocess.run(
        [sys.executable, tmp_path / "program.py"], stdout=subprocess.PIPE, env=environment, timeout=60
    )
    assert ended.returncode == -9


# --- every reader keeps the same contract


def synthetic(folder: Path) -> Synthetic:
    return Synthetic(folder, 100, num_patients=12, seed=0)


def ptb_xl(folder: Path) -> PTBXL:
    source = synthetic(folder)
    source.table()
    return PTBXL(source.folder, 100)


def index_csv(folder: Path) -> IndexCsv:
    """The same records as arrays: other lead order, unit and rate column."""
    source = synthetic(folder)
    table = source.table()
    for row in table.to_dict("records"):
        np.save(folder / f"{row['record_id']}.npy", source.read(row).signal_mv[::-1] * 1000)
    index = pd.DataFrame({"FILE_NAME": table["record_id"] + ".npy", "SAMPLE_RATE": 100, "fold": table["fold"]})
    index = index.assign(label=[codes[0] for codes in table["codes"]], who=table["patient_id"], text=table["report"])
    index = index.assign(flags=table["quality"].str.join("; "))
    index.to_csv(folder / "i.csv")
    keys = {"csv": "i.csv", "fold_column": "fold", "label_columns": ["label"], "patient_id_column": "who"}
    keys |= {"report_column": "text", "quality_column": "flags"}
    return IndexCsv(folder, 100, **keys, leads=LEADS[::-1], unit="uV")


@pytest.fixture(params=[synthetic, ptb_xl, index_csv])
def reader(request, tmp_path):
    return request.param(tmp_path)


def test_a_readers_table_has_the_columns_and_kinds_that_are_relied_on(reader):
    table = reader.table()
    assert set(TABLE_COLUMNS) <= set(table.columns)
    assert table["record_id"].is_unique
    for row in table.to_dict("records"):
        assert all(isinstance(row[name], str) for name in ("record_id", "patient_id", "path"))
        assert isinstance(row["fold"], int)
        assert isinstance(row["codes"], list)
        assert row["sex"] in ("male", "female") or pd.isna(row["sex"])
        assert isinstance(row["age"], float)
        assert isinstance(row["report"], str)  # every generated record has one; a reader may do without the column
        assert isinstance(row["quality"], list)  # likewise
    flags = {flag for of_record in table["quality"] for flag in of_record}
    assert flags <= {"static_noise", "baseline_drift", "extra_beats"}


def test_a_readers_records_are_float32_millivolts_with_named_leads(reader):
    for row in reader.table().to_dict("records")[:3]:
        one = reader.read(row)
        assert one.record_id == row["record_id"]
        assert one.signal_mv.dtype == np.float32
        assert one.signal_mv.shape == (12, 1000)
        assert sorted(one.leads) == sorted(LEADS)
        assert 0.2 < np.abs(one.signal_mv).max() < 20
        three, two, first = (one.signal_mv[one.leads.index(lead)] for lead in ("III", "II", "I"))
        np.testing.assert_allclose(three, two - first, atol=0.003)


def test_a_readers_protocols_cover_its_codes_and_its_fingerprint_is_stable(reader):
    protocols = reader.protocols()
    assert all(name == protocol.name for name, protocol in protocols.items())
    for protocol in protocols.values():
        assert {name for names in protocol.classes_of_code.values() for name in names} == set(protocol.classes)
    assert reader.fingerprint() == pickle.loads(pickle.dumps(reader)).fingerprint()
    int(reader.fingerprint(), 16)


def test_every_reader_makes_the_same_store_of_the_same_records(tmp_path):
    stores = []
    for make in (synthetic, ptb_xl, index_csv):
        (tmp_path / make.__name__).mkdir()
        stores.append(built(make(tmp_path / make.__name__), tmp_path / "stores", FILTERED))
    for store in stores[1:]:
        np.testing.assert_array_equal(store.signals, stores[0].signals)
        assert store.index["fold"].tolist() == stores[0].index["fold"].tolist()
        assert store.index["patient_id"].tolist() == stores[0].index["patient_id"].tolist()
        assert store.reports(range(len(store.index))) == stores[0].reports(range(len(store.index)))
    assert all(text == text.strip() != "" for text in stores[0].reports(range(len(stores[0].index))))
