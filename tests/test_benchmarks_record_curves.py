"""benchmarks/record_curves.py without its hours: what is drawn, what one curve holds, and the table of all."""

import json
import math

import pandas as pd

from search_spaces.distributions import default_of, parse


def test_a_configuration_follows_from_its_number_and_the_first_is_the_default(benchmark, tmp_path):
    launch = benchmark.launch_of(tmp_path)
    drawn = [benchmark.choices_of(launch, number) for number in range(8)]
    assert drawn == [benchmark.choices_of(launch, number) for number in range(8)]
    assert len({json.dumps(choices) for choices in drawn}) == 8
    tree = launch.model_dump(mode="json", by_alias=True)
    assert drawn[0] == {leaf.key: default_of(leaf.key, tree) for leaf in parse(launch.space).leaves}
    assert {choices["model.encoder"] for choices in drawn} == {"resnet1d", "vit1d", "mtae"}


def test_a_curve_has_an_epoch_for_each_that_was_trained_and_the_table_a_row_for_each(benchmark, tmp_path, monkeypatch):
    tiny = ("data=synthetic", "data.reader.num_patients=60", "data.leads=[II,V2]", "data.window_s=1.2")
    short = ("task.finetune.num_epochs=2", "data.max_train_patients=null", "data.max_valid_patients=null")
    typed = (*benchmark.TYPED, *tiny, *short, f"data.store_dir={tmp_path}")
    monkeypatch.setattr(benchmark, "CURVES", tmp_path)
    launch = benchmark.launch_of(tmp_path, typed)
    curve = benchmark.curve_of(tmp_path, 0, benchmark.store_of(launch), typed=typed)
    assert [math.isfinite(epoch["value"]) and epoch["seconds"] > 0 for epoch in curve["epochs"]] == [True, True]
    benchmark.write_table([curve | {"configuration": 7}, curve], launch, tmp_path, processes=1, typed=typed)
    table = pd.read_parquet(tmp_path / "ptb_xl_supervised.parquet")
    assert table[["configuration", "epoch"]].to_numpy().tolist() == [[0, 1], [0, 2], [7, 1], [7, 2]]
    assert set(curve["choices"]) == set(table.columns) - {"configuration", "epoch", "value", "seconds"}
    told = json.loads((tmp_path / "ptb_xl_supervised.json").read_text())
    assert (told["configurations"], told["epochs"]) == (2, 2)
