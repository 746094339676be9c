"""Nothing that we open runs a program: a malicious pickle is planted wherever a file of others is read.

What is opened must be refused in one line, or left alone; the marker that each of them would make must not be there.
"""

import ast
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import launch
from data.download import SUMS, download
from data.record import DataError
from data.store import Store
from models.classifier import Classifier
from search_spaces.compose import compose_choices
from search_spaces.distributions import parse
from search_spaces.samplers import make_sampler
from search_spaces.schema import CmaEsSampler, checked
from trainables.checkpoint import DESCRIPTION, WEIGHTS, contract_of, describe, load
from trainables.components import ComponentError
from trainables.files import StorageError, write_tensors
from trainables.pretrain import fresh_encoder
from trainables.state import LAST, SavedState, best_path, copy_state, read_place
from trainables.study import StudyError, StudyFolder

ROOT = Path(__file__).parents[1]
REFUSALS = (StorageError, DataError, StudyError, ComponentError)
SYNTHETIC = ["search=stmem_ptbxl", "scale=laptop", "data=synthetic", "data.reader.num_patients=40"]


class Malicious:
    """Makes a file when an ordinary unpickler loads it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    """The file that must not come into being, in whatever test that asks for it."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


@pytest.fixture
def program(marker):
    """A malicious pickle."""
    return pickle.dumps(Malicious(marker))


@pytest.fixture
def tagged(marker):
    """A malicious YAML file."""
    return f"!!python/object/apply:os.mknod [{marker}]\n"


def torch_file(path, marker, *, legacy=False):
    """A malicious file of torch's, in either of its formats."""
    content = {"model": {"x": torch.zeros(1)}, "args": Malicious(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def refused(function, *arguments, error=REFUSALS):
    """The one line in which it was refused."""
    with pytest.raises(error) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def mistake(capsys, *arguments):
    """The one line that a command answers."""
    assert launch.main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    return said


def test_each_of_the_programs_runs_where_it_is_let(tmp_path):
    for number, run_it in enumerate(
        (
            lambda path: pickle.loads(pickle.dumps(Malicious(path))),
            lambda path: (
                torch_file(tmp_path / "x.pt", path),
                torch.load(tmp_path / "x.pt", weights_only=False),
            ),
            lambda path: yaml.unsafe_load(f"!!python/object/apply:os.mknod [{path}]"),
        )
    ):
        path = tmp_path / f"marker{number}"
        run_it(path)
        assert path.exists()


# -------- checkpoints and states


@pytest.fixture
def checkpoint(tiny_run, tiny_recordings, tmp_path):
    """A checkpoint as a study keeps it."""
    folder = tmp_path / "best_1"
    classifier = Classifier(
        fresh_encoder(tiny_run), len(tiny_recordings.labels.classes), drop_path=0.0, head_init_std=1.0
    )
    write_tensors(folder / WEIGHTS, classifier.state_dict(), {})
    contract = contract_of(tiny_run, tiny_recordings)
    run = tiny_run.model_dump(mode="json", by_alias=True)
    describe(folder, {"trial": 0, "epoch": 1, "value": 0.5, "metrics": {}, "contract": contract, "run": run})
    return folder


def test_what_lies_beside_a_checkpoint_is_left_alone(checkpoint, program, marker):
    for name in ("model.pkl", "optimizer.pickle", ".metadata", "joblib.joblib"):
        (checkpoint / name).write_bytes(program)
    for name in ("model.pt", "pytorch_model.bin", "last.ckpt"):
        torch_file(checkpoint / name, marker)
    assert load(checkpoint).classes


@pytest.mark.parametrize("kind", ["pickle", "torch", "torch, old"])
def test_weights_that_are_a_program_are_refused(checkpoint, program, marker, kind):
    (checkpoint / WEIGHTS).write_bytes(program)
    if kind != "pickle":
        torch_file(checkpoint / WEIGHTS, marker, legacy=kind == "torch, old")
    assert "cannot be read as safetensors" in refused(load, checkpoint)


def test_a_description_that_is_a_program_is_refused(checkpoint, program, tagged, capsys):
    for content in (program, tagged.encode()):
        (checkpoint / DESCRIPTION).write_bytes(content)
        assert "cannot be read" in refused(load, checkpoint)
        assert "cannot be read" in mistake(capsys, "command=evaluate", f"checkpoint={checkpoint}")


@pytest.mark.parametrize("target", ["os.mknod", "pickle.loads", "torch.load", "builtins.eval", "data.store.os.mknod"])
def test_a_description_can_name_no_class_but_ours(checkpoint, marker, target):
    description = json.loads((checkpoint / DESCRIPTION).read_text())
    description["run"]["model"]["encoder"] = {"_target_": target, "path": str(marker)}
    (checkpoint / DESCRIPTION).write_text(json.dumps(description))
    refused(load, checkpoint)


def test_a_trials_state_that_is_a_program_is_refused(tmp_path, program, marker):
    folder = tmp_path / "running" / "0000"
    folder.mkdir(parents=True)
    (folder / LAST).write_bytes(program)
    for read in (SavedState.load, read_place, partial(copy_state, target=tmp_path / "other")):
        assert "cannot be read as safetensors" in refused(read, folder)
    place = {"epoch": 1, "stage": "pretrain", "stage_epoch": 1, "history": []}
    best = {"epoch": 1, "value": 0.5, "metrics": {}}
    write_tensors(folder / LAST, {"model.x": torch.zeros(1)}, {"state": json.dumps({**place, "best": best})})
    torch_file(best_path(folder, 1), marker)
    assert "cannot be read as safetensors" in refused(SavedState.load, folder)
    write_tensors(folder / LAST, {"model.x": torch.zeros(1)}, {"state": program.hex()})
    assert "holds no state" in refused(SavedState.load, folder)


# -------- weights of others


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.ckpt", "weights.bin", "weights.safetensors"])
@pytest.mark.parametrize("kind", ["pickle", "torch", "torch, old"])
def test_foreign_weights_that_are_a_program_are_refused(tmp_path, program, marker, capsys, name, kind):
    (tmp_path / name).write_bytes(program)
    if kind != "pickle":
        torch_file(tmp_path / name, marker, legacy=kind == "torch, old")
    launch_of_import = checked(
        compose_choices([*SYNTHETIC, "command=import", f"weights={tmp_path / name}", f"mapping={tmp_path}/m.yaml"]).tree
    )
    data = launch_of_import.run.data.model_dump(mode="json")
    keys = ("sampling_rate_hz", "leads", "highpass_hz", "lowpass_hz", "filter_order", "standardize", "window_s")
    mapping = {"source": "somebody", "contract": {key: data[key] for key in keys} | {"unit": "mV"}}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(mapping))
    typed = [f"weights={tmp_path / name}", f"mapping={tmp_path}/m.yaml", f"study_dir={tmp_path}/to"]
    assert "cannot be read as" in mistake(capsys, "command=import", *SYNTHETIC, *typed)
    assert not (tmp_path / "to").exists()


def test_a_mapping_that_is_a_program_is_refused(tmp_path, tagged, program, capsys):
    typed = [f"weights={tmp_path}/w.pth", f"mapping={tmp_path}/m.yaml", f"study_dir={tmp_path}/to"]
    for content in (tagged.encode(), program):
        (tmp_path / "m.yaml").write_bytes(content)
        assert "is no YAML" in mistake(capsys, "command=import", *SYNTHETIC, *typed)


def test_a_text_encoder_whose_weights_are_a_program_is_refused(tmp_path, marker, program):
    from models.text import PretrainedText

    config = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config |= {"intermediate_size": 8, "vocab_size": 10, "auto_map": {"AutoModel": "program.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "program.py").write_text(f"open({str(marker)!r}, 'w')")
    torch_file(tmp_path / "pytorch_model.bin", marker)
    (tmp_path / "training_args.bin").write_bytes(program)
    refused(lambda: PretrainedText(folder=str(tmp_path), max_tokens=8, frozen=True), error=ValueError)


# -------- a study's folder


@pytest.fixture
def study(tmp_path, tiny_store):
    """A study that was begun, with one trial asked for."""
    folder = StudyFolder(tmp_path / "study")
    resumed(folder, tiny_store).next_trial()
    return folder


def resumed(folder, store, *typed):
    """The books of the study, as a search opens them before Ray is started."""
    choices = checked(compose_choices([*SYNTHETIC, *typed]).tree)
    return launch.open_books(choices, launch.checked_space(choices), folder, store)[0]


def object_table(marker):
    """A table whose schema asks for an unpickler, as versions of arrow before 14.0.1 obeyed (CVE-2023-47248)."""
    field = pa.field("x", pa.binary()).with_metadata(
        {
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(Malicious(marker)),
        }
    )
    return pa.table({"x": pa.array([pickle.dumps(Malicious(marker))], pa.binary())}, schema=pa.schema([field]))


LEFT_OVERS = (
    ".scratch/tune/tuner.pkl",
    ".scratch/tune/experiment_state-2026-01-01_00-00-00.json",
    ".scratch/tune/searcher-state-2026-01-01_00-00-00.pkl",
    ".scratch/tune/trial-0000-abc/error.pkl",
    ".scratch/tune/trial-0000-abc/params.pkl",
    "tuner.pkl",
    "trainer.pkl",
    "running/0000/train/gang-0000/checkpoint_000000/.metadata.json",
    "running/0000/train/gang-0000/checkpoint_manager_snapshot.json",
    "report/model.joblib",
)


def test_what_tune_and_others_left_in_a_study_is_left_alone(study, tiny_store, program):
    for name in LEFT_OVERS:
        (study.path / name).parent.mkdir(parents=True, exist_ok=True)
        (study.path / name).write_bytes(program)
    assert resumed(study, tiny_store).num_ended == 0


def test_a_configuration_that_is_a_program_is_refused(study, tagged, program, capsys):
    for content in (tagged.encode(), program):
        study.configuration.write_bytes(content)
        assert "cannot be read" in refused(study.read_configuration)
        for command in ("command=report", "command=train", "command=search"):
            typed = ["trial=0"] if command == "command=train" else SYNTHETIC if command == "command=search" else []
            mistake(capsys, command, *typed, f"study_dir={study.path}")


def test_lines_of_events_that_are_a_program_are_left_out(study, tiny_store, program, tagged):
    with study.events.open("ab") as file:
        file.write(program + b"\n" + tagged.encode() + json.dumps(program.hex()).encode() + b"\n")
    assert resumed(study, tiny_store).num_ended == 0


@pytest.mark.parametrize("content", ["pickle", "lines", "json"])
def test_a_journal_that_is_a_program_is_refused(study, tiny_store, program, content):
    found = {
        "pickle": program,
        "lines": program.replace(b"\n", b"") + b"\n",
        "json": json.dumps(program.hex()).encode() + b"\n",
    }[content]
    with study.journal.open("r+b") as file:
        file.write(found + b"\n")
    assert "journal" in refused(resumed, study, tiny_store)


OPTIMISERS = {
    "a program": lambda program: program.hex(),
    "an array": lambda program: pickle.dumps(np.zeros(3)).hex(),
    "no pickle": lambda program: "no hexadecimal",
    "nothing": lambda program: "",
}


@pytest.mark.parametrize("content", OPTIMISERS)
def test_an_optimiser_in_the_journal_that_is_something_else_is_refused(program, content):
    space = parse({"lr": {"log_uniform": [1e-4, 1e-2]}, "ratio": {"uniform": [0.3, 0.9]}})
    study = optuna.create_study(direction="maximize")

    def ask(number):
        study.sampler = make_sampler(CmaEsSampler(name="cmaes", num_startup_trials=1), seed=0, number=number)
        asked = study.ask()
        space.ask(asked)
        return asked

    for number in range(20):
        asked = ask(number)
        if number == 19:
            study._storage.set_trial_system_attr(asked._trial_id, "cma:optimizer:0", OPTIMISERS[content](program))
        study.tell(asked, float(number))
    kept = [key for trial in study.trials[:-1] for key in trial.system_attrs if key.startswith("cma:optimizer")]
    assert kept  # else there would be nothing to restore
    assert "restore journal.log" in refused(ask, 20)


def told_in_a_report(capsys, study):
    """What a report says that it leaves out."""
    assert launch.main(["command=report", f"study_dir={study.path}"]) == 0
    said = capsys.readouterr().out
    assert "left out: " in said
    return said


def test_tables_of_a_study_that_are_programs_are_left_out_or_written_anew(study, tiny_store, program, marker, capsys):
    study.report.mkdir()
    for path in (study.trials, study.report / "predictions.parquet"):
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(program)
        assert "is not readable parquet" in told_in_a_report(capsys, study)
        pq.write_table(object_table(marker), path)
        told_in_a_report(capsys, study)
        path.unlink() if before is None else path.write_bytes(before)
    study.trials.write_bytes(program)
    resumed(study, tiny_store)
    assert pd.read_parquet(study.trials)["number"].tolist() == [0]


def test_other_files_of_a_report_that_are_programs_are_left_out(study, program, capsys):
    study.report.mkdir()
    for name in ("report/untrained.json", "checkpoints/best_1/checkpoint.json", "checkpoints/default/checkpoint.json"):
        (study.path / name).parent.mkdir(parents=True, exist_ok=True)
        (study.path / name).write_bytes(program)
        assert f"{name} is not readable JSON" in told_in_a_report(capsys, study)
        (study.path / name).unlink()


def test_a_folder_of_ones_own_configuration_runs_nothing(tmp_path, tagged, capsys):
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "mine.yaml").write_text(f"# @package _global_\nseed: {tagged}")
    mistake(capsys, f"--config-dir={tmp_path}", "search=mine")


# -------- recordings


@pytest.fixture
def store(tiny_store, tmp_path):
    """A copy of the prepared store."""
    return shutil.copytree(tiny_store.path, tmp_path / "store")


def with_index(store, content):
    """Put another index into the store, with the checksum that its manifest then needs."""
    (store / "index.parquet").write_bytes(content)
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["index_sha256"] = hashlib.sha256(content).hexdigest()
    (store / "manifest.json").write_text(json.dumps(manifest))


def test_a_stores_manifest_and_signals_that_are_programs_are_refused(store, program, marker):
    (store / "extra.npy").write_bytes(program)
    Store.open(store)
    (store / "signals.int16").write_bytes(program)
    refused(Store.open, store)
    (store / "manifest.json").write_bytes(program)
    refused(Store.open, store)


def test_a_stores_index_that_is_a_program_is_refused(store, program, marker):
    with_index(store, program)
    refused(Store.open, store)
    sink = pa.BufferOutputStream()
    pq.write_table(object_table(marker), sink)
    with_index(store, sink.getvalue().to_pybytes())
    refused(Store.open, store)


def test_a_column_that_asks_for_an_unpickler_is_bytes(store, marker):
    table = pq.read_table(store / "index.parquet")
    strange = object_table(marker)
    column = pa.chunked_array([pa.array([strange["x"][0].as_py()] * len(table), pa.binary())])
    table = table.append_column(strange.schema.field("x"), column)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    with_index(store, sink.getvalue().to_pybytes())
    assert isinstance(Store.open(store).index["x"].iloc[0], bytes)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pkl", "a.pickle", "a.csv", "pickle.npy"])
def test_an_array_file_that_is_a_program_is_refused(tmp_path, program, marker, capsys, name):
    objects = np.array([Malicious(marker)], dtype=object)
    if name == "a.npy":
        np.save(tmp_path / name, objects, allow_pickle=True)
    elif name == "a.npz":
        np.savez(tmp_path / name, signal=objects)
    else:
        (tmp_path / name).write_bytes(program)
    table = {"FILE_NAME": [name] * 4, "SAMPLE_RATE": [100] * 4, "LABEL": [0, 1, 0, 1], "FOLD": [1, 2, 9, 10]}
    pd.DataFrame(table | {"ID": list("abcd")}).to_csv(tmp_path / "all.csv", index=False)
    typed = [f"data.root={tmp_path}", "data.reader.csv=all.csv", "data.reader.fold_column=FOLD", "data=index_csv"]
    typed += ["data.reader.label_columns=[LABEL]", "task.labels=labels", "data.reader.record_id_column=ID"]
    said = mistake(capsys, "command=prepare", *typed, f"data.store_dir={tmp_path / 'stores'}")
    assert "4 of 4" in said


def test_an_index_that_is_a_program_is_refused(tmp_path, program, capsys):
    (tmp_path / "all.csv").write_bytes(program)
    typed = ["data=index_csv", f"data.root={tmp_path}", "data.reader.csv=all.csv", "data.reader.fold_column=FOLD"]
    mistake(capsys, "command=prepare", *typed, "data.reader.label_columns=[LABEL]", "task.labels=labels")


@pytest.fixture
def server(tmp_path):
    """A web server for tmp_path/published, on loopback."""
    folder = tmp_path / "published"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{serving.server_address[1]}/"
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_a_download_that_is_a_program_is_kept_or_refused_and_never_opened(server, tmp_path, program, capsys):
    folder, url = server
    names = ("ptbxl_database.csv", "scp_statements.csv", "records100/00000/00001_lr.dat")
    for name in (*names, "records100/00000/00001_lr.hea"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(program)
    (folder / SUMS).write_bytes(program)
    fetch = partial(download, rates=[100])
    refused(fetch, url, tmp_path / "got")
    sums = "".join(f"{hashlib.sha256(program).hexdigest()}  {name}\n" for name in names)
    (folder / SUMS).write_text(sums)
    fetch(url, tmp_path / "got")
    assert (tmp_path / "got" / names[0]).read_bytes() == program
    mistake(capsys, "command=prepare", "data=ptb_xl", f"data.root={tmp_path / 'got'}", "data.source_rate_hz=100")


# -------- our own source


ALLOWED = {
    # a class that refuses every name but numpy's arrays and what its caller names
    ("data/plain_pickles.py", "pickle.Unpickler"): "loads arrays in plain containers alone",
    ("data/plain_pickles.py", "pickle.UnpicklingError"): "an error's name",
    ("data/index_csv.py", "pickle.UnpicklingError"): "an error's name",
    ("trainables/foreign.py", "pickle.UnpicklingError"): "an error's name",
    ("search_spaces/tuning.py", "cloudpickle.load"): "the error that Tune has just written to this driver's folder",
}
"""(file, name) of what looks like an unpickler, and why it may be there."""
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle", "hickle"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {"read_pickle", "read_hdf", "to_pickle", "unsafe_load", "full_load", "get_pickled_error", "load_snapshot"}
SAFE_ARGUMENT = {("torch", "load"): ("weights_only", True), ("np", "load"): ("allow_pickle", False)}


def unpicklers_in(source):
    """(line, name) of everything in a source that can run what a file holds."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0]: alias for alias in node.names}
            # `import pickle` alone is harmless: what is used of it is found below
            found |= {(node.lineno, f"import {name}") for name in names.keys() & MODULES - {"pickle"}}
            found |= {
                (node.lineno, f"import {name} as") for name, alias in names.items() if alias.asname and name in MODULES
            }
        elif isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in MODULES:
            found |= {(node.lineno, f"from {node.module} import {alias.name}") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and any(alias.name in MODULES and alias.asname for alias in node.names):
            found.add((node.lineno, f"from {node.module} import one as another"))
        elif isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in ("yaml", "torch", "numpy"):
            found |= {(node.lineno, f"from {node.module} import load") for alias in node.names if alias.name == "load"}
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner in MODULES:
                found.add((node.lineno, f"{owner}.{node.attr}"))
            elif node.attr in METHODS:
                found.add((node.lineno, node.attr))
            elif owner == "yaml" and node.attr in ("load", "load_all", "Loader", "UnsafeLoader", "FullLoader"):
                found.add((node.lineno, f"yaml.{node.attr}"))
            elif owner == "torch" and node.attr in ("package", "hub", "jit"):
                found.add((node.lineno, f"torch.{node.attr}"))
        elif isinstance(node, ast.Call):
            found |= _calls(node)
    return found


def _calls(node):
    """What a call does that its name alone does not say."""
    if isinstance(node.func, ast.Name):
        return {(node.lineno, node.func.id)} if node.func.id in CALLS else set()
    if not isinstance(node.func, ast.Attribute) or not isinstance(node.func.value, ast.Name):
        return set()
    name = (node.func.value.id, node.func.attr)
    name = ("np" if name[0] == "numpy" else name[0], name[1])
    if name not in SAFE_ARGUMENT:
        return set()
    key, wanted = SAFE_ARGUMENT[name]
    given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
    return set() if given.get(key) is wanted else {(node.lineno, f"{'.'.join(name)} without {key}={wanted}")}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(x)",
        "import pickle as p\np.loads(x)",
        "from pickle import loads",
        "import cloudpickle",
        "from ray import cloudpickle\ncloudpickle.loads(x)",
        "from ray import cloudpickle as cp",
        "import joblib",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=flag)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "from yaml import load",
        "pd.read_pickle(path)",
        "eval(text)",
        "exec(text)",
        "trial.get_pickled_error()",
        "torch.hub.load('a', 'b')",
        "torch.jit.load(path)",
        "pd.read_hdf(path)",
    ],
)
def test_an_unpickler_is_found_in(source):
    assert unpicklers_in(source)


def test_what_runs_nothing_is_not_taken_for_an_unpickler():
    source = (
        "import pickle, re\nnp.load(p, allow_pickle=False)\ntorch.load(p, weights_only=True)\nyaml.safe_load(t)\n"
        "re.compile(x)\nmodel.eval()\njson.loads(t)"
    )
    assert unpicklers_in(source) == set()


def our_sources():
    packages = ("data", "models", "reports", "search_spaces", "trainables")
    return [ROOT / "launch.py", *sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))]


def test_our_source_unpickles_nothing_but_what_is_allowed_with_a_reason():
    found = {
        (str(path.relative_to(ROOT)), name): line
        for path in our_sources()
        for line, name in unpicklers_in(path.read_text(encoding="utf-8"))
    }
    assert {key: line for key, line in found.items() if key not in ALLOWED} == {}
    assert ALLOWED.keys() - found.keys() == set()  # none allowed for longer than it is there


def test_the_oldest_arrow_allowed_unpickles_no_schema():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (arrow,) = [name for name in project["dependencies"] if name.startswith("pyarrow")]
    assert int(arrow.removeprefix("pyarrow>=").split(".")[0]) >= 15


# -------- the search itself


@pytest.mark.cluster
def test_a_search_goes_on_in_a_folder_full_of_programs_and_opens_none(tmp_path, program):
    typed = [*SYNTHETIC, "data.leads=[I,II,V2]", "data.window_s=3.0", "data.reader.num_patients=150"]
    typed += ["data.max_train_patients=null", "data.max_valid_patients=null", "search.num_trials=1"]
    typed += ["task.pretrain.num_epochs=1", "task.finetune.num_epochs=1", "evaluate.num_resamples=10"]
    typed += ["cluster.num_cpus=1", "study_dir=study"]
    for name in LEFT_OVERS:
        (tmp_path / "study" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "study" / name).write_bytes(program)
    ended = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *typed],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "study" / "report" / "index.html").exists()
    assert not (tmp_path / "executed").exists()
