import pytest
import torch

from data import record
from models.classifier import Classifier
from models.encoder import LEADS, has_weight_decay, lead_rows
from models.resnet import ResNet1d
from models.st_mem import STMEMEncoder
from trainables.settings import STANDARD_LEADS


def st_mem():
    return STMEMEncoder(
        leads=["I"],
        num_samples=10,
        sampling_rate_hz=10,
        size="laptop",
        patch_duration_s=0.5,
        num_sep_tokens=2,
        standardize_patches=True,
    )


def resnet():
    return ResNet1d(leads=["I"], num_samples=10, sampling_rate_hz=10, size="laptop", kernel_size=3)


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
    model = Classifier(st_mem(), 3, drop_path=0.0, head_init_std=0.02)
    decayed = {name for name, parameter in model.named_parameters() if has_weight_decay(name, parameter)}
    of_a_block = ["attention.qkv", "attention.out", "mlp.0", "mlp.2"]
    blocks = {f"encoder.blocks.{index}.{part}.weight" for index in range(3) for part in of_a_block}
    assert decayed == blocks | {"encoder.patch_embedding.1.weight", "head.weight"}


@pytest.mark.parametrize("encoder", [st_mem, resnet])
@pytest.mark.parametrize("shape", [(2, 2, 10), (2, 1, 11), (2, 1, 0), (1, 10), (10,), (2, 1, 1, 10)])
def test_signals_of_other_leads_or_more_samples_or_another_shape_are_refused_in_one_line(encoder, shape):
    message = rf"the signal must be \(records, 1 leads, 10 samples\) with the leads I, got \({shape[0]}, ?"
    with pytest.raises(ValueError, match=message) as caught:
        encoder()(torch.zeros(shape))
    assert "\n" not in str(caught.value)
