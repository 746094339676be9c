"""benchmarks/reuse.py in miniature: every figure is there, and seconds of trials that differ are no figure."""

import itertools

import pytest

TINY = (
    "data.leads=[II,V2]",
    "data.window_s=3.0",
    "task.pretrain.num_epochs=1",
    "task.finetune.num_epochs=1",
    "task.pretrain.batch_size=16",
    "task.finetune.batch_size=16",
)


@pytest.fixture(scope="module")
def study(benchmark, tmp_path_factory):
    return benchmark.opened(tmp_path_factory.mktemp("study"), None, 60, *TINY)


def test_every_figure_is_there_and_pretrainings_and_embeddings_were_shared(benchmark, study):
    figures = benchmark.measured(study)
    assert [figure.name for figure in figures] == ["joint", "linear_probe", "first_head", "kept"]
    assert all(figure.value > 0 for figure in figures)
    assert len(list((study.folder / "joint-shared" / "pretrained").rglob("epoch-0001.safetensors"))) == 1
    # the first head's training records, the linear probe's validation records
    assert len(list((study.folder / "linear_probe-shared").rglob("embeddings.npy"))) == 2


def test_trials_that_report_other_numbers_when_they_share_are_no_figure(benchmark, study, monkeypatch):
    numbers = itertools.count()
    monkeypatch.setattr(benchmark, "trial", lambda *given: (1.0, next(numbers)))
    with pytest.raises(RuntimeError, match="trial 0 of other must report the same"):
        benchmark.both_ways(study, [study.run()], "other")
