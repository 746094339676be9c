"""Which parameters mattered: found where one decides, doubted where none does; in words where nothing can be said."""

import json
import sys

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from reports.report import build
from reports.search.importance import MIN_TRIALS, divergences, read_journal
from reports.search.ped_anova import Grids
from search_spaces.journal import open_study

SPACE = {
    "model": CategoricalDistribution(["simclr", "mae"]),
    "lr": FloatDistribution(1e-4, 1e-2, log=True),
    "decay": FloatDistribution(0.0, 0.1),
    "width": FloatDistribution(0.0, 1.0),
}
TEMPERATURE = FloatDistribution(0.05, 1.0)
NUM_EPOCHS = 4
NUM_SHUFFLINGS = 40


def drawn(num_trials, *, seed=0):
    """Parameters of trials drawn at random; every second one is simclr, which alone has a temperature."""
    draw = np.random.default_rng(seed)
    trials = []
    for number in range(num_trials):
        params = {"model": ("simclr", "mae")[number % 2], "lr": float(10 ** draw.uniform(-4, -2))}
        params |= {"decay": float(draw.uniform(0, 0.1)), "width": float(draw.uniform())}
        trials.append(params)
    return trials


def by_lr(params):
    return 0.8 - 0.05 * abs(np.log10(params["lr"]) + 3)


def write_study(folder, trials, value_at, *, direction="maximize", stopped_after=NUM_EPOCHS, num_complete=0):
    """A study in whose epochs `value_at(params, epoch)` was reported; all but the first `num_complete` were stopped."""
    (folder / "report").mkdir(parents=True, exist_ok=True)
    leaves = {"model": {"choice": ["simclr", "mae"]}, "lr": {"log_uniform": [1e-4, 1e-2]}}
    search = {"name": "s", "metric": "val/auroc", "direction": direction}
    (folder / "study.yaml").write_text(yaml.safe_dump({"search": search, "space": leaves}))
    study = open_study(folder / "journal.log", direction)
    events, rows = [], []
    for number, params in enumerate(trials):
        complete = number < num_complete
        values = {e: value_at(params, e) for e in range(1, (NUM_EPOCHS if complete else stopped_after) + 1)}
        distributions = {name: SPACE.get(name, TEMPERATURE) for name in params}
        state = TrialState.COMPLETE if complete else TrialState.PRUNED
        end = list(values.values())[-1]
        study.add_trial(
            create_trial(state=state, value=end, params=params, distributions=distributions, intermediate_values=values)
        )
        events.append({"event": "trial_started", "trial": number, "params": params})
        for epoch, value in values.items():
            metrics = {"val/auroc": value}
            events.append({"event": "epoch", "trial": number, "epoch": epoch, "stage": "pretrain", "metrics": metrics})
        row = {"number": number, "state": state.name, "value": end, "epochs": len(values), "seconds": 1.0}
        rows.append(row | params)
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    pd.DataFrame(rows).to_parquet(folder / "trials.parquet")
    return folder


def reported(folder, **settings):
    index = build(folder, num_resamples=5, **settings)
    metrics = json.loads((folder / "report" / "metrics.json").read_text())
    page = index.read_text()
    section = page.split('<section id="importance"')[1].split("</section>")[0]
    return metrics["importance"], section


@pytest.fixture(autouse=True)
def _quick_and_quiet(monkeypatch):
    monkeypatch.setattr("reports.search.importance.NUM_RESAMPLES", 20)
    monkeypatch.setattr("reports.search.importance.NUM_SHUFFLINGS", NUM_SHUFFLINGS)
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_the_parameter_that_decides_is_found_and_the_others_are_doubted(tmp_path):
    found, page = reported(write_study(tmp_path, drawn(40, seed=1), lambda params, _: by_lr(params)))
    shares = found["at_epoch"]["parameters"]
    assert shares.keys() == SPACE.keys()
    assert max(shares, key=lambda name: shares[name]["share"]) == "lr"
    assert shares["lr"]["share"] > 0.7
    assert shares["lr"]["by_chance"] == 1 / NUM_SHUFFLINGS
    assert all(shares[name]["by_chance"] > 0.05 for name in ("model", "decay", "width"))
    assert sum(entry["share"] for entry in shares.values()) == pytest.approx(1)
    assert all(0 <= entry["low"] <= entry["high"] <= 1 for entry in shares.values())
    assert page.index("<code>lr</code>") < page.index("<code>width</code>")
    assert "hardly chance (2 %)" in page
    assert "too few" not in page


def test_the_choice_of_the_method_is_found_where_it_decides(tmp_path):
    draw = np.random.default_rng(3)
    trials = drawn(40)
    noise = {trial["lr"]: 0.01 * draw.normal() for trial in trials}
    values = {trial["lr"]: 0.1 * (trial["model"] == "mae") + noise[trial["lr"]] for trial in trials}
    found, _ = reported(write_study(tmp_path, trials, lambda params, _: values[params["lr"]]))
    assert found["at_epoch"]["parameters"]["model"]["by_chance"] <= 0.05


def test_noise_alone_is_said_to_be_able_to_be_chance_although_shares_add_up_to_one(tmp_path):
    draw = np.random.default_rng(0)
    trials = drawn(40)
    values = {trial["lr"]: float(draw.normal()) for trial in trials}
    found, page = reported(write_study(tmp_path, trials, lambda params, _: values[params["lr"]]))
    assert max(entry["share"] for entry in found["at_epoch"]["parameters"].values()) > 0.3
    assert page.count("could be chance (") == len(SPACE)
    assert "hardly chance" not in page


def test_trials_are_compared_at_the_epoch_that_most_reached_and_completed_ones_by_their_end(tmp_path):
    def value(params, epoch):  # the rate decides early, the decay in the end
        return by_lr(params) if epoch <= 2 else params["decay"]

    folder = write_study(tmp_path, drawn(60), value, stopped_after=2, num_complete=11)
    found, page = reported(folder)
    early, late = found["at_epoch"], found["completed"]
    assert (early["num_trials"], late["num_trials"]) == (60, 11)
    assert max(early["parameters"], key=lambda name: early["parameters"][name]["share"]) == "lr"
    assert max(late["parameters"], key=lambda name: late["parameters"][name]["share"]) == "decay"
    assert (
        "epoch 2, in pre-training: the last epoch that at least 80 % of the trials with a value reached, 60 of 60"
        in page
    )
    assert "Share among the 11 completed, final values" in page


def test_few_completed_trials_are_counted_and_not_looked_at(tmp_path):
    folder = write_study(tmp_path, drawn(30), lambda params, _: by_lr(params), stopped_after=2, num_complete=9)
    found, page = reported(folder)
    assert found["completed"]["parameters"] == {}
    assert "Final values are not looked at: 9 trials completed, 10 are needed." in page


def test_a_parameter_of_some_methods_is_compared_among_the_trials_that_have_it(tmp_path):
    trials = drawn(40)
    draw = np.random.default_rng(5)
    for trial in trials:
        if trial["model"] == "simclr":
            trial["temperature"] = float(draw.uniform(0.05, 1.0))

    def value(params, _):
        return 0.5 + params["temperature"] if "temperature" in params else 0.0

    found, page = reported(write_study(tmp_path, trials, value))
    entry = found["at_epoch"]["parameters"]["temperature"]
    assert entry["num_trials"] == 20
    assert entry["share"] > 0.5
    assert entry["by_chance"] == 1 / NUM_SHUFFLINGS
    assert "among 20 trials that have it, too few for a stable figure" in page
    common = [entry["share"] for name, entry in found["at_epoch"]["parameters"].items() if name != "temperature"]
    assert sum(common) == pytest.approx(1)
    assert page.index("<code>width</code>") < page.index("<code>temperature</code>")


def test_a_parameter_that_too_few_trials_have_gets_no_figure(tmp_path):
    trials = drawn(30)
    for trial in trials[: MIN_TRIALS - 1]:
        trial["temperature"] = 0.2
    found, page = reported(write_study(tmp_path, trials, lambda params, _: by_lr(params)))
    entry = found["at_epoch"]["parameters"]["temperature"]
    assert (entry["share"], entry["low"], entry["high"]) == (None, None, None)
    assert "too few: 7 of the 8 trials that are needed have it" in page


def test_few_trials_are_warned_of_and_fewer_give_no_figure(tmp_path):
    few, page = reported(write_study(tmp_path / "few", drawn(12), lambda params, _: by_lr(params)))
    assert few["at_epoch"]["parameters"]["lr"]["share"] is not None
    assert "12 trials are too few for stable figures (fewer than 30)" in page
    fewer, page = reported(write_study(tmp_path / "fewer", drawn(7), lambda params, _: by_lr(params)))
    assert fewer["at_epoch"]["parameters"] == {}
    assert "This cannot be said: there are 7 trials to compare and 8 are needed." in page


def test_values_that_are_all_equal_tell_nothing(tmp_path):
    found, page = reported(write_study(tmp_path, drawn(20), lambda *_: 0.5))
    assert {entry["share"] for entry in found["at_epoch"]["parameters"].values()} == {None}
    assert "all 20 trials came out with the same value" in page


def test_a_parameter_that_was_never_varied_takes_no_share_from_the_others(tmp_path):
    trials = [trial | {"decay": 0.05} for trial in drawn(20)]
    found, page = reported(write_study(tmp_path, trials, lambda params, _: by_lr(params)))
    shares = {name: entry["share"] for name, entry in found["at_epoch"]["parameters"].items()}
    assert shares.pop("decay") is None
    assert sum(shares.values()) == pytest.approx(1)
    assert "all 20 trials had the same choice" in page


def test_the_best_choosing_as_all_did_tells_nothing(tmp_path):
    trials = [{"model": trial["model"]} for trial in drawn(10)]
    values = iter(np.repeat([0.9, 0.8, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.0, 0.0], NUM_EPOCHS).tolist())
    found, page = reported(write_study(tmp_path, trials, lambda *_: next(values)))  # of the best two one is simclr
    assert found["at_epoch"]["parameters"]["model"]["share"] is None
    assert "the best of the 10 trials chose as all of them did" in page


def test_an_evaluator_that_fails_is_a_reason(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no\nmore")

    monkeypatch.setattr(optuna.importance.PedAnovaImportanceEvaluator, "evaluate", fail)
    monkeypatch.setattr(Grids, "of", lambda *_: None)  # as of trials whose ranges changed midway
    found, _ = reported(write_study(tmp_path, drawn(10), lambda params, _: by_lr(params)))
    assert found == {"reason": "Optuna’s evaluator failed (RuntimeError: no more)"}


def test_the_best_are_the_smallest_where_the_search_minimises(tmp_path):
    trials = drawn(30)
    larger = write_study(tmp_path / "larger", trials, lambda params, _: by_lr(params))
    smaller = write_study(tmp_path / "smaller", trials, lambda params, _: -by_lr(params), direction="minimize")
    assert reported(larger)[0] == reported(smaller)[0]


def test_the_same_seed_gives_the_same_figures_and_another_one_other_intervals(tmp_path):
    folder = write_study(tmp_path, drawn(20), lambda params, _: by_lr(params))
    assert reported(folder, seed=1) == reported(folder, seed=1)
    first, second = reported(folder, seed=1)[0], reported(folder, seed=2)[0]
    for name, entry in first["at_epoch"]["parameters"].items():
        assert entry["share"] == second["at_epoch"]["parameters"][name]["share"]
    assert first["at_epoch"] != second["at_epoch"]


def test_the_figures_are_those_of_optuna_on_a_study_of_its_own(tmp_path):
    folder = write_study(tmp_path, drawn(30), lambda params, _: by_lr(params), num_complete=30)
    trials = list(read_journal(folder / "journal.log").values())
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.2)
    expected = optuna.importance.get_param_importances(study, evaluator=evaluator)
    found = divergences(trials, list(expected), StudyDirection.MAXIMIZE)
    np.testing.assert_allclose(found / found.sum(), list(expected.values()), rtol=1e-9)


def test_the_journal_of_a_running_study_is_read_and_nothing_is_written(tmp_path):
    journal = write_study(tmp_path, drawn(10), lambda params, _: by_lr(params)) / "journal.log"
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"half a li')
    before = (journal.read_bytes(), journal.stat().st_mtime_ns, sorted(tmp_path.iterdir()))
    assert len(read_journal(journal)) == 10
    assert reported(tmp_path)[0]["at_epoch"]["num_trials"] == 10
    assert (journal.read_bytes(), journal.stat().st_mtime_ns, sorted(tmp_path.iterdir())) == before


def break_line(journal):
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], b"\x00 not JSON\n", *lines[6:]]))


def lose_beginning(journal):
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[3:]))


def lose_end(journal):
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_line, "journal.log cannot be read (JSONDecodeError: "),
        (lose_beginning, "journal.log lacks trial 0"),
        (lose_end, "journal.log lacks trial 9, which events.jsonl has: restore it"),
        (lambda journal: journal.write_bytes(b""), "journal.log lacks trial 0"),
        (lambda journal: journal.write_bytes(b"7\n"), "journal.log cannot be read ("),
        (lambda journal: journal.unlink(), "has no journal.log"),
    ],
)
def test_a_journal_that_cannot_be_read_is_a_reason_and_the_rest_of_the_report_stands(tmp_path, damage, said):
    damage(write_study(tmp_path, drawn(10), lambda params, _: by_lr(params)) / "journal.log")
    found, page = reported(tmp_path)
    assert said in found["reason"]
    assert "This cannot be said: " in page
    assert "Which parameters mattered" in page
    assert '<section id="choices"' in (tmp_path / "report" / "index.html").read_text()


def test_without_optuna_the_report_is_made_and_says_what_is_missing(tmp_path, monkeypatch):
    write_study(tmp_path, drawn(10), lambda params, _: by_lr(params))
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "reports.search.importance")
    found, page = reported(tmp_path)
    assert found == {"reason": "Optuna, which computes it, is not installed where this report was made"}
    assert "is not installed where this report was made" in page


def test_a_search_of_nothing_has_no_section(tmp_path):
    write_study(tmp_path, [{} for _ in range(3)], lambda *_: 0.5)
    assert '<section id="importance"' not in build(tmp_path, num_resamples=5).read_text()
