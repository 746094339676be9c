import pytest

from data import record
from models.classifier import Classifier
from models.encoder import LEADS, has_weight_decay, lead_rows
from models.st_mem import STMEMEncoder
from trainables.settings import STANDARD_LEADS


def test_models_data_and_settings_name_the_same_leads_in_the_same_order():
    assert list(LEADS) == list(record.LEADS) == STANDARD_LEADS


def test_leads_are_found_by_name_in_any_order():
    assert lead_rows(["V1", "II", "aVR"]) == [6, 1, 3]


@pytest.mark.parametrize(
    ("leads", "message"),
    [
        ([], "at least one lead"),
        (["I", "V7"], r"leads must be among I, II, .*, got 'V7'"),
        (["I", "avr"], "got 'avr'"),
        (["I", "II", "I"], "must not repeat, got I, II, I"),
    ],
)
def test_leads_that_cannot_be_are_refused_in_one_line(leads, message):
    with pytest.raises(ValueError, match=message) as caught:
        lead_rows(leads)
    assert "\n" not in str(caught.value)


def test_weight_decay_is_for_the_matrices_of_layers_alone():
    encoder = STMEMEncoder(
        leads=["I"], num_patches=2, patch_size=5, num_sep_tokens=2, size="tiny", standardize_patches=True
    )
    model = Classifier(encoder, 3, drop_path=0.0, head_init_std=0.02)
    decayed = {name for name, parameter in model.named_parameters() if has_weight_decay(name, parameter)}
    of_a_block = ["attention.qkv", "attention.out", "mlp.0", "mlp.2"]
    blocks = {f"encoder.blocks.{index}.{part}.weight" for index in range(3) for part in of_a_block}
    assert decayed == blocks | {"encoder.patch_embedding.1.weight", "head.weight"}
