import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.clip import CLIP
from models.resnet import ResNet1d
from models.text import SmallText
from models.vit import ViT1d

INPUT = {"leads": ["I", "V2"], "num_samples": 40, "sampling_rate_hz": 10, "size": "laptop"}
CLIP_KEYS = {
    "projector": [32, 16],
    "temperature": 0.1,
    "learn_temperature": True,
    "duplicates": "exclude",
    "duplicates_share": "report",
    "ecg_weight": 0.5,
}
REPORTS = ["sinus rhythm", "atrial fibrillation", "sinus rhythm", "left axis deviation", "normal ecg", "sinus rhythm"]
SAME = torch.tensor([3, 1, 3, 0, 2, 3])


def resnet():
    return ResNet1d(**INPUT, kernel_size=3)


def vit():
    return ViT1d(**INPUT, patch_duration_s=0.5)


def clip(encoder=None, **changes):
    torch.manual_seed(0)
    encoder = resnet() if encoder is None else encoder
    text_encoder = SmallText(width=64, depth=1, vocabulary_size=30, max_tokens=8)
    return CLIP(encoder=encoder, text_encoder=text_encoder, **(CLIP_KEYS | changes))


def signals(num_records=6, seed=1):
    return torch.randn(num_records, 2, 40, generator=torch.Generator().manual_seed(seed))


def looped_loss(task, signal, tokens, same, scale):
    """MECLIP's loss, record by record and candidate by candidate."""
    ecgs = F.normalize(task.ecg_projector(task.encoder(signal)), dim=1).detach()
    texts = F.normalize(task.text_projector(task.text_encoder(tokens)), dim=1).detach()
    totals = []
    for queries, keys in ((ecgs, texts), (texts, ecgs)):
        total = 0.0
        for i in range(len(queries)):
            to = [math.exp(scale * float(queries[i] @ key)) for key in keys]
            others = sum(to[k] for k in range(len(keys)) if same[k] != same[i])
            if task.duplicates == "ignore":
                total -= math.log(to[i] / sum(to))
            elif task.duplicates == "exclude":
                total -= math.log(to[i] / (to[i] + others))
            else:
                positives = [k for k in range(len(keys)) if same[k] == same[i]]
                total -= sum(math.log(to[k] / (to[k] + others)) for k in positives) / len(positives)
        totals.append(total / len(queries))
    return task.ecg_weight * totals[0] + (1 - task.ecg_weight) * totals[1]


@pytest.mark.parametrize("duplicates", ["exclude", "positive", "ignore"])
@pytest.mark.parametrize(
    ("share", "fact", "ecg_weight"), [("report", "same_report", 0.5), ("codes", "same_codes", 0.75)]
)
def test_the_loss_is_its_formula_in_plain_loops(duplicates, share, fact, ecg_weight):
    task = clip(duplicates=duplicates, duplicates_share=share, ecg_weight=ecg_weight)
    tokens = task.report_tokens(REPORTS)
    assert tuple(task.reads) == (("reports",) if duplicates == "ignore" else ("reports", fact))
    facts = {name: SAME for name in task.reads if name != "reports"}
    loss = task(signals(), {}, reports=tokens, **facts)
    assert loss.item() == pytest.approx(looped_loss(task, signals(), tokens, SAME.tolist(), 10.0), rel=1e-4)


def test_treatments_are_plain_clip_where_every_record_says_something_else_and_differ_elsewhere():
    tasks = [clip(duplicates=treatment, duplicates_share="codes") for treatment in ("exclude", "positive", "ignore")]
    tokens = tasks[0].report_tokens(["normal", "pvc", "normal ecg", "left axis", "af", "normal sinus rhythm"])
    alone = [task(signals(), {}, reports=tokens, same_codes=torch.arange(6)).item() for task in tasks]
    assert alone == pytest.approx([alone[0]] * 3, rel=1e-5)
    assert len({round(task(signals(), {}, reports=tokens, same_codes=SAME).item(), 4) for task in tasks}) == 3


def test_where_duplicates_have_the_very_same_text_it_is_all_one_whether_they_are_left_out_or_positives():
    """Their embeddings are equal, and so are the sums of both over the records."""
    excluding, attracting, plain = (clip(duplicates=treatment) for treatment in ("exclude", "positive", "ignore"))
    tokens = plain.report_tokens(REPORTS)
    losses = [task(signals(), {}, reports=tokens, same_report=SAME) for task in (excluding, attracting, plain)]
    torch.testing.assert_close(losses[1], losses[0])
    assert losses[2] > losses[0]


def test_the_order_of_records_does_not_matter_but_which_report_is_whose():
    task = clip()
    tokens, order = task.report_tokens(REPORTS), torch.tensor([3, 1, 5, 0, 4, 2])
    loss = task(signals(), {}, reports=tokens, same_report=SAME)
    permuted = task(signals()[order], {}, reports=tokens[order], same_report=SAME[order])
    torch.testing.assert_close(permuted, loss)
    assert not torch.isclose(task(signals(), {}, reports=tokens[order], same_report=SAME[order]), loss)


def test_padding_and_reports_without_words_leave_the_loss_finite_and_padding_leaves_it_as_it_is():
    task = clip()
    tokens = task.report_tokens(REPORTS)
    loss = task(signals(), {}, reports=tokens, same_report=SAME)
    longer = torch.cat([tokens, torch.zeros(6, 4, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(task(signals(), {}, reports=longer, same_report=SAME), loss)
    for empty in (slice(1, 2), slice(None)):
        wordless = tokens.clone()
        wordless[empty] = 0
        task.zero_grad()
        loss = task(signals(), {}, reports=wordless, same_report=SAME)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)


def test_a_learnt_temperature_stops_at_a_hundredth_and_comes_back():
    task = clip()
    tokens = task.report_tokens(REPORTS)
    assert task.log_scale.exp().item() == pytest.approx(10)
    with torch.no_grad():
        task.log_scale.fill_(9.0)
    task.after_step(0, 10)
    assert task.log_scale.exp().item() == pytest.approx(100, rel=1e-5)
    # what it says is wrong, and the surer it is the more that costs: the temperature rises
    optimizer = torch.optim.SGD([task.log_scale], lr=0.01)
    task(signals(), {}, reports=tokens, same_report=SAME).backward()
    assert task.log_scale.grad > 0
    optimizer.step()
    task.after_step(1, 10)
    assert task.log_scale.exp().item() < 99.9
    before = task.log_scale.clone()
    task.after_step(2, 10)
    assert torch.equal(task.log_scale, before)


def test_a_fixed_temperature_learns_nothing():
    for temperature in (0.01, 0.07, 2.0):
        task = clip(learn_temperature=False, temperature=temperature)
        task(signals(), {}, reports=task.report_tokens(REPORTS), same_report=SAME).backward()
        assert task.log_scale.grad is None
        assert not task.log_scale.requires_grad
        before = task.log_scale.clone()
        task.after_step(0, 10)
        torch.testing.assert_close(task.log_scale, before)
        assert task.log_scale.exp().item() == pytest.approx(1 / temperature)


@pytest.mark.parametrize("build", [resnet, vit])
def test_every_parameter_learns_but_for_fixed_positions(build):
    task = clip(build())
    tokens = task.report_tokens(REPORTS)
    task(signals(), task.draw(6, torch.Generator()), reports=tokens, same_report=SAME).backward()
    without = {name for name, value in task.named_parameters() if value.grad is None or not value.grad.any()}
    assert without == ({"encoder.positions"} if build is vit else set())
    # of the words, those that no report has are told nothing
    used = set(tokens.flatten().tolist()) - {0}
    assert set(task.text_encoder.words.grad.any(dim=1).nonzero().flatten().tolist()) == used


def test_both_projections_end_in_the_same_width_and_are_not_standardised():
    task = clip()
    for projector, width in ((task.ecg_projector, task.encoder.width), (task.text_projector, 64)):
        linear = [layer for layer in projector if isinstance(layer, nn.Linear)]
        assert [(layer.in_features, layer.out_features) for layer in linear] == [(width, 32), (32, 16)]
        assert isinstance(projector[-1], nn.Linear)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be at least 0.01, got 0.0"),
        ({"temperature": 0.005}, "temperature must be at least 0.01, got 0.005"),
        ({"temperature": math.inf}, "temperature must be at least 0.01, got inf"),
        ({"temperature": math.nan}, "temperature must be at least 0.01, got nan"),
        ({"ecg_weight": -0.1}, "ecg_weight must lie between 0 and 1, got -0.1"),
        ({"ecg_weight": 1.1}, "ecg_weight must lie between 0 and 1, got 1.1"),
        ({"projector": []}, "projector must name the widths"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_names_the_key(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        clip(**changes)
    assert "\n" not in str(caught.value)
