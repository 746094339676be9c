import pytest
import torch

from models.classifier import Classifier
from models.masked_autoencoder import MaskedAutoencoder
from models.st_mem import STMEMEncoder
from trainables.optimizers import build_optimizer, parameter_groups, set_learning_rate
from trainables.schedules import learning_rate

DEPTH = 3  # blocks of the encoder
EXCLUDED = ("bias", "norm.weight", "_norm.weight", "lead_embeddings", "positions", "sep_token")


@pytest.fixture
def pretext():
    torch.manual_seed(0)
    encoder = STMEMEncoder(
        leads=["II", "V2"],
        num_samples=120,
        sampling_rate_hz=100.0,
        size="laptop",
        patch_duration_s=0.3,
        num_sep_tokens=1,
        standardize_patches=True,
    )
    return MaskedAutoencoder(
        encoder=encoder,
        mask_ratio=0.75,
        norm_pix_loss=True,
        loss_on="hidden",
        ncc_weight=0.0,
        decoder_width=None,
        decoder_depth=None,
        decoder_heads=None,
        decoder_head_width=64,
    )


@pytest.fixture
def classifier(pretext):
    return Classifier(pretext.encoder, 5, drop_path=0.0, head_init_std=0.01)


def groups_of(classifier, **changes):
    told = {"weight_decay": 0.05, "decay_biases_and_norms": False, "layer_decay": 0.5} | changes
    return parameter_groups(classifier, num_layers=DEPTH + 1, layer_of=classifier.layer_of, **told)


def by_name(model, groups, key):
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name_of[id(parameter)]: group[key] for group in groups for parameter in group["params"]}


def test_each_trainable_parameter_is_in_one_group(classifier):
    classifier.encoder.blocks[0].requires_grad_(False)
    members = [id(parameter) for group in groups_of(classifier) for parameter in group["params"]]
    trainable = [id(parameter) for parameter in classifier.parameters() if parameter.requires_grad]
    assert sorted(members) == sorted(trainable)


def test_layer_decay_multiplies_once_for_each_layer_below_the_head(classifier):
    scales = by_name(classifier, groups_of(classifier, layer_decay=0.7), "lr_scale")
    for name, scale in scales.items():
        part = name.split(".")
        layer = {"head": DEPTH + 1}.get(part[0], 0)
        if part[1] == "norm":
            layer = DEPTH + 1
        elif part[1] == "blocks":
            layer = int(part[2]) + 1
        assert scale == pytest.approx(0.7 ** (DEPTH + 1 - layer)), name
    assert len(set(scales.values())) == DEPTH + 2


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_layer_decay_survives_the_schedule(classifier, tiny_run, name):
    stage = tiny_run.task.finetune
    stage = stage.model_copy(update={"optimizer": stage.optimizer.model_copy(update={"name": name})})
    optimizer = build_optimizer(stage, groups_of(classifier, layer_decay=0.5))
    for step in (0, 3, 10, 99):
        lr = learning_rate(step, 100, peak_lr=stage.peak_lr, min_lr=stage.min_lr, warmup_share=stage.warmup_share)
        set_learning_rate(optimizer, lr)
        for parameter in classifier.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        rates = by_name(classifier, optimizer.param_groups, "lr")
        assert rates["head.weight"] == lr
        assert rates["encoder.norm.weight"] == lr
        assert rates["encoder.blocks.2.mlp.0.weight"] == pytest.approx(0.5 * lr)
        assert rates["encoder.blocks.0.mlp.0.weight"] == pytest.approx(0.5**3 * lr)
        assert rates["encoder.positions"] == pytest.approx(0.5**4 * lr)


def test_without_layers_all_parameters_learn_at_the_full_rate(pretext):
    groups = parameter_groups(pretext, weight_decay=0.05, decay_biases_and_norms=False)
    assert {group["lr_scale"] for group in groups} == {1.0}


def test_weight_decay_is_kept_off_biases_norms_tokens_and_tables(classifier):
    decays = by_name(classifier, groups_of(classifier), "weight_decay")
    for name, decay in decays.items():
        # the patch embedding ends in a norm, which Sequential calls by its position
        excluded = name.endswith(EXCLUDED) or name == "encoder.patch_embedding.2.weight"
        patch_norm = name == "encoder.patch_embedding.0.weight"
        assert decay == (0.0 if excluded or patch_norm else 0.05), name
    assert set(decays.values()) == {0.0, 0.05}


def test_the_switch_decays_all_of_them_too(classifier):
    decays = by_name(classifier, groups_of(classifier, decay_biases_and_norms=True), "weight_decay")
    assert set(decays.values()) == {0.05}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_only_what_decays_shrinks_where_nothing_is_learnt(classifier, tiny_run, name):
    stage = tiny_run.task.finetune
    stage = stage.model_copy(update={"optimizer": stage.optimizer.model_copy(update={"name": name})})
    optimizer = build_optimizer(stage, groups_of(classifier, weight_decay=0.1, layer_decay=1.0))
    set_learning_rate(optimizer, 0.5)
    before = {name: parameter.detach().clone() for name, parameter in classifier.named_parameters()}
    for parameter in classifier.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(classifier.named_parameters())
    torch.testing.assert_close(after["head.weight"], before["head.weight"] * 0.95)
    for kept in ("encoder.lead_embeddings", "encoder.positions", "encoder.norm.weight", "head.bias"):
        assert torch.equal(after[kept], before[kept])


def test_the_optimizer_has_the_constants_of_its_stage(classifier, tiny_run):
    stage = tiny_run.task.pretrain
    adamw = build_optimizer(stage, groups_of(classifier))
    assert isinstance(adamw, torch.optim.AdamW)
    assert {group["betas"] for group in adamw.param_groups} == {stage.optimizer.betas}
    settings = stage.optimizer.model_copy(update={"name": "sgd", "momentum": 0.3})
    sgd = build_optimizer(stage.model_copy(update={"optimizer": settings}), groups_of(classifier))
    assert isinstance(sgd, torch.optim.SGD)
    assert {group["momentum"] for group in sgd.param_groups} == {0.3}
    assert {group["weight_decay"] for group in sgd.param_groups} == {0.0, 0.05}
