import math

import pytest
import torch
import torch.nn.functional as F

from models.resnet import ResNet1d
from models.simclr import SimCLR
from models.vit import ViT1d

INPUT = {"leads": ["I", "V2"], "num_samples": 40, "sampling_rate_hz": 10, "size": "laptop"}


def resnet():
    return ResNet1d(**INPUT, kernel_size=3)


def vit():
    return ViT1d(**INPUT, patch_duration_s=0.5)


def simclr(encoder=None, **changes):
    torch.manual_seed(0)
    encoder = resnet() if encoder is None else encoder
    return SimCLR(encoder=encoder, **({"projector": [32, 16], "temperature": 0.1} | changes))


def views(num_records=6, seed=1):
    return torch.randn(num_records, 2, 2, 40, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_that_of_the_paper_over_the_projected_views():
    task = simclr()
    signal = views()
    embeddings = task.encoder(torch.cat([signal[:, 0], signal[:, 1]]))  # all views are normalised together
    z = F.normalize(task.projector(embeddings), dim=1).tolist()
    total = 0.0
    for i in range(12):
        partner = (i + 6) % 12
        weights = [math.exp(sum(a * b for a, b in zip(z[i], other, strict=True)) / 0.1) for other in z]
        total -= math.log(weights[partner] / (sum(weights) - weights[i]))
    assert task(signal, {}).item() == pytest.approx(total / 12, rel=1e-4)


def test_which_view_is_first_and_which_record_does_not_matter():
    task, signal = simclr(), views()
    loss = task(signal, {})
    torch.testing.assert_close(task(signal.flip(1), {}), loss)
    torch.testing.assert_close(task(signal[[3, 1, 5, 0, 4, 2]], {}), loss)


def test_views_of_one_record_attract_and_those_of_different_records_do_not():
    task, signal = simclr(), views()
    alike = signal.clone()
    alike[:, 1] = alike[:, 0]
    assert task(alike, {}) < task(signal, {})


def test_the_projectors_output_is_standardised_over_the_batch():
    task = simclr()
    projected = task.projector(task.encoder(views().flatten(0, 1)))
    torch.testing.assert_close(projected.mean(dim=0), torch.zeros(16), rtol=0, atol=1e-5)


@pytest.mark.parametrize("build", [resnet, vit])
def test_every_parameter_learns_but_for_fixed_positions(build):
    task = simclr(build())
    task(views(), task.draw(6, torch.Generator())).backward()
    without = {name for name, value in task.named_parameters() if value.grad is None or not value.grad.any()}
    assert without == ({"encoder.positions"} if build is vit else set())
    assert task.num_views == 2
    assert task.draw(6, torch.Generator()) == {}


def test_the_encoder_is_taken_as_it_is():
    encoder = resnet()
    assert simclr(encoder).encoder is encoder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": -1.0}, "temperature must be above 0, got -1.0"),
        ({"temperature": math.nan}, "temperature must be above 0, got nan"),
        ({"projector": []}, "projector must name the widths"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_names_the_key(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        simclr(**changes)
    assert "\n" not in str(caught.value)
