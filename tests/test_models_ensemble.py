import pytest
import torch

from models.classifier import Classifier
from models.ensemble import Ensemble, name_of_member
from models.resnet import ResNet1d


def member(seed):
    torch.manual_seed(seed)
    encoder = ResNet1d(leads=("II", "V2"), num_samples=64, sampling_rate_hz=50, size="laptop", kernel_size=3)
    return Classifier(encoder, 3, drop_path=0.0, head_init_std=1.0).eval()


@pytest.fixture(scope="module")
def members():
    return [member(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def signal():
    return torch.randn(5, 2, 64, generator=torch.Generator().manual_seed(0))


def probabilities(logits, kind):
    return logits.sigmoid() if kind == "multilabel" else logits.softmax(dim=-1)


@pytest.mark.parametrize("kind", ["multilabel", "single_label"])
def test_an_ensemble_answers_with_the_mean_of_its_members_probabilities(members, signal, kind):
    ensemble = Ensemble(members, kind).eval()
    with torch.no_grad():
        mean = torch.stack([probabilities(one(signal), kind) for one in members]).mean(dim=0)
        torch.testing.assert_close(probabilities(ensemble(signal), kind), mean, rtol=0, atol=1e-6)
        embedding = ensemble.encoder(signal)  # what an evaluation does, with crops in between
        again = ensemble.head(embedding[:, None].expand(-1, 2, -1))
        torch.testing.assert_close(again[:, 1], ensemble(signal), rtol=0, atol=1e-6)
    assert embedding.shape == (5, ensemble.encoder.width)
    assert ensemble.head.out_features == 3


def test_sure_members_stay_finite(members):
    head = Ensemble(members, "multilabel").head
    embedding = torch.full((1, sum(one.encoder.width for one in members)), 1e4)
    assert torch.isfinite(head(embedding)).all()


def test_a_member_answers_as_it_did_alone(members, signal):
    ensemble = Ensemble(members, "multilabel").eval()
    with torch.no_grad():
        for number, alone in enumerate(members):
            torch.testing.assert_close(ensemble.member(number)(signal), alone(signal), rtol=0, atol=0)


def test_the_tensors_of_members_have_names_of_their_own(members):
    expected = {name_of_member(number, name) for number, one in enumerate(members) for name in one.state_dict()}
    ensemble = Ensemble(members, "multilabel")
    assert set(ensemble.state_dict()) == expected
    for name, _ in ensemble.named_parameters():
        if name.startswith("encoder."):
            own = name.split(".", maxsplit=3)[3]
            assert ensemble.layer_of(name) == members[0].encoder.layer_of(own)


def test_an_ensemble_of_none_is_refused():
    with pytest.raises(ValueError, match="at least one member"):
        Ensemble([], "multilabel")
