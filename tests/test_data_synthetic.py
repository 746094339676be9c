import ast
import time

import numpy as np
import pandas as pd
import pytest

from data import synthetic
from data.labels import read_labels
from data.ptb_xl import PTBXL
from data.record import LEADS, DataError
from data.synthetic import STATEMENT_OF_CODE, Synthetic


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Synthetic:
    source = Synthetic(tmp_path_factory.mktemp("synthetic"), 100, num_patients=400, seed=0)
    source.table()
    return source


@pytest.fixture(scope="module")
def signals_mv(source) -> np.ndarray:
    """(n, 12, 1000)."""
    return np.stack([source.read(row).signal_mv for row in source.table().to_dict("records")])


def test_the_folder_is_a_ptb_xl_of_its_own(source):
    assert PTBXL(source.folder, 100).table().equals(source.table())
    assert PTBXL(source.folder, 100).protocols() == source.protocols()
    published = pd.read_csv(source.folder / "ptbxl_database.csv")
    assert list(published.columns[:4]) == ["ecg_id", "patient_id", "age", "sex"]
    assert len(published.columns) == 28


def test_patients_keep_one_fold_and_some_have_several_records(source):
    table = source.table()
    assert table.groupby("patient_id")["fold"].nunique().max() == 1
    assert table["patient_id"].nunique() == 400
    assert sorted(table["fold"].unique()) == list(range(1, 11))
    assert 1.05 < len(table) / 400 < 1.3


def test_every_statement_is_drawn_and_every_superclass_is_common(source):
    table = source.table()
    drawn = {code for codes in table["codes"] for code in codes}
    assert len(drawn) > 0.8 * len(STATEMENT_OF_CODE)
    labels = read_labels(table["codes"], source.protocols()["superdiagnostic"])
    assert labels.classes == ("NORM", "MI", "STTC", "CD", "HYP")
    assert labels.targets.mean(axis=0).min() > 0.06
    assert (labels.targets.sum(axis=1) > 1).any()


def database(source):
    return pd.read_csv(source.folder / "ptbxl_database.csv")


def test_reports_follow_from_the_statements_and_many_records_share_theirs(source):
    table = database(source)
    codes = [frozenset(ast.literal_eval(text)) for text in table["scp_codes"]]
    codes_of_report = {}
    for report, of_record in zip(table["report"], codes, strict=True):
        assert codes_of_report.setdefault(report, of_record) == of_record  # a text says one thing
    normal = table["report"][[of_record == {"NORM", "SR"} for of_record in codes]].value_counts()
    assert set(normal.index) == {
        "sinus rhythm. normal ecg.",
        "sinus rhythm normal ecg",
        "sinusrhythmus normales ekg",
        "sinusrhythmus normales ekg 4.46 unbestätigter bericht",
    }
    assert normal.min() > 0.15 * normal.sum()
    assert table["report"].nunique() < 0.6 * len(table)


def test_flags_are_rare_and_those_of_noise_are_on_records_with_more_of_it(source):
    table = source.table()
    noisy = np.array(["static_noise" in flags for flags in table["quality"]])
    assert 0.02 < noisy.mean() < 0.4
    roughness = [np.median(np.abs(np.diff(source.read(row).signal_mv))) for row in table.to_dict("records")[:120]]
    assert np.mean(np.array(roughness)[noisy[:120]]) > 1.3 * np.mean(np.array(roughness)[~noisy[:120]])
    beats = ["extra_beats" in flags for flags in table["quality"]]
    assert beats == ["PVC" in codes for codes in table["codes"]]


def test_every_statement_has_a_name_of_its_own_in_both_languages():
    assert synthetic._GERMAN_OF_CODE.keys() == STATEMENT_OF_CODE.keys()
    assert len(set(synthetic._GERMAN_OF_CODE.values())) == len(STATEMENT_OF_CODE)
    assert all(text == text.lower() for text in synthetic._GERMAN_OF_CODE.values())


def test_reports_are_drawn_apart_from_all_else(tmp_path, monkeypatch):
    source = Synthetic(tmp_path / "drawn", 100, num_patients=10, seed=0)
    source.table()
    monkeypatch.setattr(synthetic, "_draw_report", lambda codes, rng: "none")
    without = Synthetic(tmp_path / "none", 100, num_patients=10, seed=0)
    without.table()
    assert database(without).drop(columns="report").equals(database(source).drop(columns="report"))
    for path in sorted((source.folder / "records100").rglob("*.*")):
        assert (without.folder / path.relative_to(source.folder)).read_bytes() == path.read_bytes()


def test_a_folder_of_the_version_before_is_left_alone(tmp_path, monkeypatch):
    source = Synthetic(tmp_path, 100, num_patients=10, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "GENERATOR_VERSION", synthetic.GENERATOR_VERSION - 1)
        before, fingerprint = source.folder, source.fingerprint()
        source.table()
    source.table()
    assert source.folder != before
    assert source.fingerprint() != fingerprint


def test_the_leads_obey_einthoven_and_goldberger(signals_mv):
    one, two, three, right, left, foot = signals_mv.transpose(1, 0, 2)[:6]
    for difference in (three - (two - one), right + (one + two) / 2, left - (one - two / 2), foot - (two - one / 2)):
        assert np.abs(difference).max() < 0.0021  # each lead is rounded to 1 uV on its own


def test_voltages_are_those_of_a_surface_ecg(signals_mv):
    assert np.isfinite(signals_mv).all()
    peak_mv = np.abs(signals_mv[:, 1]).max(axis=1)
    assert 0.5 < np.median(peak_mv) < 2.5
    assert np.ptp(signals_mv, axis=2).min() > 0


def probability_of_order(scores, positive):
    """The AUROC: how often a positive scores above a negative."""
    ranks = scores.argsort().argsort() + 1
    num = positive.sum()
    return (ranks[positive].sum() - num * (num + 1) / 2) / (num * (len(scores) - num))


def test_labels_change_the_signal_where_cardiology_says(source, signals_mv):
    codes = source.table()["codes"]
    named = {code: np.array([code in record for record in codes]) for code in STATEMENT_OF_CODE}
    lead = {name: signals_mv[:, position] for position, name in enumerate(LEADS)}
    large_v5 = np.ptp(lead["V5"], axis=1)
    assert probability_of_order(large_v5, named["LVH"]) > 0.7
    net = {name: signal.max(axis=1) + signal.min(axis=1) for name, signal in lead.items()}
    assert probability_of_order(net["aVL"] - net["II"], named["LAFB"]) > 0.75
    share_of_time_high = (lead["V6"] > 0.4 * lead["V6"].max(axis=1, keepdims=True)).mean(axis=1)
    assert probability_of_order(share_of_time_high, named["CLBBB"]) > 0.7
    assert probability_of_order(-np.ptp(signals_mv[:, :6], axis=2).max(axis=1), named["LVOLT"]) > 0.85


def test_no_label_is_given_away_by_one_amplitude(source, signals_mv):
    labels = read_labels(source.table()["codes"], source.protocols()["superdiagnostic"])
    amplitudes = np.concatenate([signals_mv.max(axis=2), signals_mv.min(axis=2), signals_mv.std(axis=2)], axis=1)
    for column in labels.targets.T == 1:
        areas = [probability_of_order(amplitude, column) for amplitude in amplitudes.T]
        assert max(max(areas), 1 - min(areas)) < 0.9


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path):
    sources = [Synthetic(tmp_path / str(number), 100, 10, seed) for number, seed in enumerate((3, 3, 4))]
    records = [[source.read(row).signal_mv for row in source.table().to_dict("records")] for source in sources]
    np.testing.assert_array_equal(records[0], records[1])
    assert records[0][0].tolist() != records[2][0].tolist()
    assert sources[0].fingerprint() == sources[1].fingerprint() != sources[2].fingerprint()


def test_500_hz_writes_what_ptb_xl_has_at_500_hz(tmp_path):
    source = Synthetic(tmp_path, 500, num_patients=10, seed=0)
    record = source.read(source.table().iloc[0].to_dict())
    assert record.signal_mv.shape == (12, 5000)
    assert record.sampling_rate_hz == 500
    with pytest.raises(DataError, match="data.source_rate_hz=500"):
        PTBXL(source.folder, 100).table()


def test_a_source_is_written_once(tmp_path):
    source = Synthetic(tmp_path, 100, num_patients=10, seed=0)
    source.table()
    written = (source.folder / "ptbxl_database.csv").stat().st_mtime_ns
    source.table()
    assert (source.folder / "ptbxl_database.csv").stat().st_mtime_ns == written


def test_a_source_that_was_interrupted_is_not_there_and_can_be_written_again(tmp_path, monkeypatch):
    source = Synthetic(tmp_path, 100, num_patients=10, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_csv", interrupt)
        with pytest.raises(KeyboardInterrupt):
            source.table()
    assert not source.folder.exists()
    assert len(source.table()) >= 10


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_fifteen_hundred_records_take_seconds(tmp_path):
    source = Synthetic(tmp_path, 100, num_patients=30, seed=0)
    begun = time.process_time()
    num_records = len(source.table())
    assert (time.process_time() - begun) / num_records < 15 / 1500


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source_rate_hz": 250}, "data.source_rate_hz must be 100 or 500, got 250"),
        ({"num_patients": 9}, "data.reader.num_patients must be at least 10, one a fold, got 9"),
        ({"root": None}, "data.root must be a folder"),
    ],
)
def test_keys_that_cannot_be_are_refused_by_name(tmp_path, keys, message):
    with pytest.raises(DataError, match=message):
        Synthetic(**({"root": tmp_path, "source_rate_hz": 100, "num_patients": 10, "seed": 0} | keys)).table()
