import math

import pytest
import torch
import torch.nn.functional as F

from models.clocs import CLOCS
from models.mtae import MTAEEncoder
from models.resnet import ResNet1d
from models.st_mem import STMEMEncoder
from models.vit import ViT1d

INPUT = {"leads": ["I", "V2"], "sampling_rate_hz": 10, "size": "laptop"}


def resnet(num_samples=40):
    return ResNet1d(**INPUT, num_samples=num_samples, kernel_size=3)


def vit(num_samples=40):
    return ViT1d(**INPUT, num_samples=num_samples, patch_duration_s=0.5)


def st_mem(num_samples=40):
    keys = {"patch_duration_s": 0.5, "num_sep_tokens": 1, "standardize_patches": False}
    return STMEMEncoder(**INPUT, num_samples=num_samples, **keys)


def mtae(num_samples=40):
    return MTAEEncoder(**INPUT, num_samples=num_samples, patch_duration_s=0.5, standardize_patches=False)


def clocs(encoder=None, **changes):
    torch.manual_seed(0)
    keys = {"projector": [32, 16], "temperature": 0.1, "same_patient": "positive"}
    return CLOCS(encoder=resnet() if encoder is None else encoder, **(keys | changes))


def signals(num_records=6, num_samples=40, seed=1):
    return torch.randn(num_records, 2, num_samples, generator=torch.Generator().manual_seed(seed))


def segments_seen(task, signal):
    """What the encoder is given: (2 B, C, t)."""
    given = []
    hook = task.encoder.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    task(signal, {}, patients=torch.arange(len(signal)))
    hook.remove()
    return given[0]


@pytest.mark.parametrize(
    ("build", "num_samples", "length"),
    [(resnet, 40, 20), (resnet, 41, 20), (vit, 40, 20), (vit, 45, 20), (vit, 10, 5), (vit, 15, 5), (st_mem, 35, 15)],
)
def test_the_halves_are_whole_segments_from_both_ends_that_share_no_sample(build, num_samples, length):
    task = clocs(build(num_samples))
    signal = torch.arange(float(num_samples)).expand(4, 2, -1) + torch.randn(4, 2, 1)
    given = segments_seen(task, signal).unflatten(0, (4, 2))
    assert torch.equal(given[:, 0], signal[..., :length])
    assert torch.equal(given[:, 1], signal[..., num_samples - length :])
    assert 2 * length <= num_samples


PATIENTS = torch.tensor([4, 4, 7, 1, 7, 7])


def looped_loss(task, signal, patients):
    halves = segments_seen(task, signal)
    z = F.normalize(task.projector(task.encoder(halves)).detach(), dim=1).view(len(signal), 2, -1)
    total = 0.0
    for one in (0, 1):
        for i in range(len(signal)):
            to = [math.exp(float(z[i, one] @ z[k, 1 - one]) / 0.1) for k in range(len(signal))]
            others = sum(to[k] for k in range(len(signal)) if patients[k] != patients[i])
            if task.same_patient == "ignore":
                total -= math.log(to[i] / sum(to))
            elif task.same_patient == "exclude":
                total -= math.log(to[i] / (to[i] + others))
            else:
                positives = [k for k in range(len(signal)) if patients[k] == patients[i]]
                total -= sum(math.log(to[k] / (to[k] + others)) for k in positives) / len(positives)
    return total / (2 * len(signal))


@pytest.mark.parametrize("same_patient", ["exclude", "positive", "ignore"])
@pytest.mark.parametrize("build", [resnet, vit, st_mem, mtae])
def test_the_loss_says_what_a_patients_other_records_are_in_plain_loops(build, same_patient):
    task = clocs(build(), same_patient=same_patient)
    facts = {"patients": PATIENTS} if "patients" in task.reads else {}
    assert bool(facts) is (same_patient != "ignore")
    loss = task(signals(), {}, **facts)
    assert loss.item() == pytest.approx(looped_loss(task, signals(), PATIENTS.tolist()), rel=1e-4)


def test_treatments_are_one_where_every_record_is_of_another_patient_and_differ_elsewhere():
    tasks = [clocs(same_patient=treatment) for treatment in ("exclude", "positive", "ignore")]
    alone = [task(signals(), {}, patients=torch.arange(6)).item() for task in tasks]
    assert alone == pytest.approx([alone[0]] * 3, rel=1e-5)
    assert len({round(task(signals(), {}, patients=PATIENTS).item(), 4) for task in tasks}) == 3


def test_a_batch_of_one_patient_costs_nothing_and_breaks_nothing():
    for treatment in ("exclude", "positive"):
        task = clocs(same_patient=treatment)
        loss = task(signals(), {}, patients=torch.zeros(6, dtype=torch.int64))
        loss.backward()
        assert loss.item() == 0
        assert all(parameter.grad.isfinite().all() for parameter in task.parameters())


@pytest.mark.parametrize("build", [resnet, vit, st_mem, mtae])
def test_every_parameter_learns_but_for_fixed_positions(build):
    task = clocs(build())
    task(signals(), task.draw(6, torch.Generator()), patients=PATIENTS).backward()
    without = {name for name, value in task.named_parameters() if value.grad is None or not value.grad.any()}
    assert without == (set() if build is resnet else {"encoder.positions"})
    assert task.num_views == 1


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        (lambda: vit(5), {}, "the window must hold two segments of 5 samples, got 5"),
        (lambda: st_mem(5), {}, "the window must hold two segments of 5 samples, got 5"),
        (lambda: resnet(1), {}, "the window must hold two segments of 1 samples, got 1"),
        (resnet, {"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        (resnet, {"temperature": math.nan}, "temperature must be above 0, got nan"),
        (resnet, {"projector": [0]}, "projector must name the widths"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(build, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        clocs(build(), **changes)
    assert "\n" not in str(caught.value)
