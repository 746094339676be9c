import pytest
import torch
from torch import nn

from models.byol import BYOL
from models.resnet import ResNet1d
from models.vit import ViT1d

INPUT = {"leads": ["I", "V2"], "num_samples": 40, "sampling_rate_hz": 10, "size": "laptop"}
BYOL_KEYS = {"projector": [32, 16], "predictor": [24], "momentum_start": 0.9, "momentum_end": 1.0}


def resnet():
    return ResNet1d(**INPUT, kernel_size=3)


def vit():
    return ViT1d(**INPUT, patch_duration_s=0.5)


def byol(encoder=None, **changes):
    torch.manual_seed(0)
    encoder = resnet() if encoder is None else encoder
    return BYOL(encoder=encoder, **(BYOL_KEYS | changes))


def views(num_records=6, seed=1):
    return torch.randn(num_records, 2, 2, 40, generator=torch.Generator().manual_seed(seed))


def alike(signal):
    """Two views that are the same."""
    return signal[:, :1].expand(-1, 2, -1, -1)


def moved(task):
    """The task after its encoder and projector have learnt, with a target left behind."""
    with torch.no_grad():
        for module in (task.encoder, task.projector):
            for parameter in module.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    return task


def cosine_of(first, second):
    product = sum(a * b for a, b in zip(first.tolist(), second.tolist(), strict=True))
    return product / (first.square().sum() * second.square().sum()).sqrt().item()


def test_the_loss_is_the_formula_across_the_views_in_plain_loops():
    task, signal = moved(byol()), views()
    both = torch.cat([signal[:, 0], signal[:, 1]])  # all views are normalised together
    predicted = task.predictor(task.projector(task.encoder(both))).detach()
    target = task.target["projector"](task.target["encoder"](both))
    total = 0.0
    for record in range(6):
        total += 2 - 2 * cosine_of(predicted[record], target[6 + record])
        total += 2 - 2 * cosine_of(predicted[6 + record], target[record])
    assert task(signal, {}).item() == pytest.approx(total / 6, rel=1e-4)


def test_what_is_predicted_is_the_other_view():
    """In public code each view predicts itself, which a network that does nothing can: its loss is then 0."""
    task, signal = byol(), views()
    task.predictor = nn.Identity()
    assert task(signal, {}).item() > 0.1
    assert task(alike(signal), {}).item() == pytest.approx(0, abs=1e-5)


def test_which_view_is_first_and_which_record_does_not_matter():
    task, signal = byol(), views()
    loss = task(signal, {})
    torch.testing.assert_close(task(signal.flip(1), {}), loss)
    torch.testing.assert_close(task(signal[[3, 1, 5, 0, 4, 2]], {}), loss)


@pytest.mark.parametrize("build", [resnet, vit])
def test_gradients_reach_the_online_network_alone(build):
    task = byol(build())
    entered = []
    task.target["projector"].register_forward_hook(lambda module, inputs, output: entered.append(output))
    task(views(), task.draw(6, torch.Generator())).backward()
    assert not entered[0].requires_grad
    without = {name for name, value in task.named_parameters() if value.grad is None or not value.grad.any()}
    of_target = {name for name, _ in task.named_parameters() if name.startswith("target.")}
    assert without == of_target | ({"encoder.positions"} if build is vit else set())
    assert not any(value.requires_grad for value in task.target.parameters())


def test_the_target_follows_weights_by_momentum_and_statistics_by_copy():
    task = byol(momentum_start=0.8, momentum_end=1.0)
    for step, momentum in ((0, 0.8), (5, 0.9), (10, 1.0)):
        moved(task)
        task(views(seed=step), {})
        before = {name: value.clone() for name, value in task.target.named_parameters()}
        task.after_step(step, 11)
        online = {"encoder": task.encoder, "projector": task.projector}
        for part, module in online.items():
            weights = dict(module.named_parameters())
            for name, value in task.target[part].named_parameters():
                expected = momentum * before[f"{part}.{name}"] + (1 - momentum) * weights[name]
                torch.testing.assert_close(value, expected)
            statistics = dict(module.named_buffers())
            assert statistics  # batch norm's
            for name, value in task.target[part].named_buffers():
                assert torch.equal(value, statistics[name])


def test_the_target_starts_as_the_online_network_and_shares_nothing_with_it():
    task = byol()
    for part, module in (("encoder", task.encoder), ("projector", task.projector)):
        torch.testing.assert_close(task.target[part].state_dict(), module.state_dict(), rtol=0, atol=0)
    before = {name: value.clone() for name, value in task.target.state_dict().items()}
    moved(task)
    torch.testing.assert_close(task.target.state_dict(), before, rtol=0, atol=0)


def test_the_predictor_is_as_wide_as_the_projection_with_hidden_layers_of_its_own():
    task = byol(projector=[32, 16], predictor=[24, 20])
    widths = [(layer.in_features, layer.out_features) for layer in task.predictor if isinstance(layer, nn.Linear)]
    assert widths == [(16, 24), (24, 20), (20, 16)]
    assert isinstance(task.projector[-1], nn.Linear)  # neither output is standardised
    assert isinstance(task.predictor[-1], nn.Linear)
    (only,) = byol(predictor=[]).predictor
    assert isinstance(only, nn.Linear)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"momentum_start": 1.0, "momentum_end": 0.9}, "momentum_start and momentum_end must rise between 0 and 1"),
        ({"momentum_end": 1.01}, "momentum_start and momentum_end must rise between 0 and 1, got 0.9 and 1.01"),
        ({"projector": []}, "projector must name the widths"),
        ({"projector": [8, 0]}, r"projector must name the widths .* got \[8, 0\]"),
        ({"predictor": [0]}, r"predictor must name the widths .* got \[0, 16\]"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_names_the_key(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        byol(**changes)
    assert "\n" not in str(caught.value)
