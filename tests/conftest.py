from __future__ import annotations

import importlib
import logging
import os
import secrets
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from data.store import Store
    from trainables.recordings import Recordings
    from trainables.settings import Run

TINY = (
    "command=train",
    "data=synthetic",
    "scale=laptop",
    "data.reader.num_patients=60",
    "data.leads=[II,V2]",
    "data.window_s=1.2",
    "data.eval_crops=2",
    "task.probe.l2=0.1",
    "task.pretrain.num_epochs=2",
    "task.pretrain.batch_size=16",
    "task.finetune.num_epochs=2",
    "task.finetune.batch_size=16",
)
"""What makes a run of the shipped configuration last a fraction of a second; all else is as shipped."""


@pytest.fixture(scope="session")
def ptbxl_datasets() -> Path:
    """Folder of real data sets beside the checkout, or where HEARTSWEEP_DATASETS says; nothing of it is committed."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "datasets"
    folder = Path(os.environ.get("HEARTSWEEP_DATASETS") or beside)
    if not (folder / "ptbxl_100hz").is_dir():
        pytest.skip(f"no PTB-XL at {folder}: set HEARTSWEEP_DATASETS to the folder that holds ptbxl_100hz")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _token_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A Ray that a test starts asks for a token of the tests' own: the user's is neither used nor changed."""
    path = tmp_path_factory.mktemp("token") / "auth_token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32), encoding="ascii")
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tensors as small as those of tests gain nothing from threads, which wait for one another on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def compose_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Composes tiny runs: what is given is typed after TINY, in the words of a command line."""
    from search_spaces.compose import compose_choices
    from search_spaces.schema import checked

    root = tmp_path_factory.mktemp("synthetic")
    return lambda *typed: checked(compose_choices([*TINY, f"data.root={root}", *typed]).tree).run


@pytest.fixture(scope="session")
def tiny_run(compose_run: Callable[..., Run]) -> Run:
    """Pre-training and fine-tuning in two epochs each."""
    return compose_run()


@pytest.fixture(scope="session")
def tiny_store(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The synthetic recordings of every run that `compose_run` composes without other data.* choices."""
    from data.store import prepare
    from trainables.recordings import preparation_of, reader_of

    return prepare(
        reader_of(tiny_run.data),
        preparation_of(tiny_run.data),
        tmp_path_factory.mktemp("stores"),
        name="tiny",
        max_unreadable_share=0.0,
    )


@pytest.fixture(scope="session")
def tiny_recordings(tiny_run: Run, tiny_store: Store) -> Recordings:
    """The tiny run's recordings, opened."""
    from trainables.recordings import open_recordings

    return open_recordings(tiny_run, tiny_store.path)


@pytest.fixture(scope="session")
def put_checkpoint(tiny_run: Run, tiny_recordings: Recordings) -> Callable[..., Path]:
    """Puts an untrained classifier of the tiny run into a folder, as a trial's checkpoint."""
    from trainables.checkpoint import WEIGHTS, describe, description_of
    from trainables.classify import enter_finetune
    from trainables.files import write_tensors
    from trainables.pretrain import fresh_encoder
    from trainables.state import TrainState
    from trainables.workers import Workers

    def put(folder: Path, trial: int | None = 3, run: Run = tiny_run) -> Path:
        state = TrainState("val/auroc", maximize=True)
        enter_finetune(run, state, fresh_encoder(run), tiny_recordings, Workers())
        write_tensors(folder / WEIGHTS, state.model.state_dict(), {})
        best = {"epoch": 1, "value": 0.5, "metrics": {}}
        describe(folder, description_of(run, tiny_recordings, best, "val/auroc", trial=trial))
        return folder

    return put


@pytest.fixture(scope="module")
def benchmark(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The one that test_benchmarks_NAME.py is about, imported as it is when it is run: from its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield importlib.import_module(request.module.__name__.rpartition("test_benchmarks_")[2])


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3 server of this process on loopback; its URL."""
    pytest.importorskip("s3fs", reason="needs the extra s3")
    server = pytest.importorskip("moto.server", reason="needs moto[server]")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, in the store that the environment names with credentials for it; the URL of the bucket."""
    from botocore.session import Session

    for name, value in (
        ("AWS_ENDPOINT_URL", s3_server),
        ("AWS_ACCESS_KEY_ID", "a-key-of-tests"),
        ("AWS_SECRET_ACCESS_KEY", "a-secret-of-tests"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex}"
    client = Session().create_client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket=name)
    client.close()
    return f"s3://{name}"
