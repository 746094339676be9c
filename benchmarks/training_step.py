"""What a training step costs, and how much of it is matrix work: ours beside a straightforward one, in one run.

ST-MEM as published (arXiv:2402.09450), of size small: 8 records of 12 leads and 9 s at 250 Hz (2,250 samples), patches
of 0.3 s, two separators a lead, mask ratio 0.75, a decoder 256 wide and 4 deep, float32. A step is loss, gradients,
clipping and AdamW.

    plain    written here from the paper: the decoder runs for one lead after another, attention is softmax(Q K^T) V
             spelt out, AdamW and all else are as torch has them by default.
    ours     models.* by trainables.steps.train_epoch, as a trial runs them.
    own_mm   ours with torch's own matrix products: what is gained without oneDNN (models.linear).

Each side has a process of its own, as what ours tells the allocator would help the others; they take turns. A value is
the least of its rounds, which other work on the machine disturbs least; `_median` figures are the medians. A step's
rate is its matrix FLOPs over its time: products of matrices and convolutions alone, forward and backward (for ST-MEM by
`pretraining_flops` and `finetuning_flops`, for others counted by torch). The machine's rates are the fastest of several
large products, measured in each round: by torch.mm, and by whichever of torch.mm and oneDNN is faster.

Targets: pre-training 1.25 times as fast as plain, fine-tuning as fast, both at 0.7 of torch.mm's rate; plain at half of
it, since a slower one would be no fair baseline. MTAE, MLAE, the signal MAE, JEPA and SimCLR have no plain side. Where
there is a CUDA device all is measured on it too, ours in bfloat16 as well; elsewhere a line says that it was not.

    python benchmarks/training_step.py --json FILE [--threads 2] [--rounds 5]
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from figures import Bound, Figure, parse_arguments, publish, unless_on_gpu
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.classifier import Classifier
from models.encoder import LEADS
from models.linear import Linear
from models.losses import multilabel_loss
from search_spaces.compose import compose_choices
from search_spaces.schema import checked
from trainables.components import build_encoder, build_pretext_on
from trainables.optimizers import build_optimizer, parameter_groups
from trainables.settings import Run, Stage
from trainables.steps import Share, train_epoch
from trainables.workers import Workers

NUM_RECORDS, NUM_SAMPLES, PATCH, NUM_CLASSES = 8, 2250, 75, 5
WIDTH, DEPTH, HEADS, HEAD_WIDTH = 384, 12, 6, 64
DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS = 256, 4, 4
NUM_SEP, NUM_PATCHES, NUM_KEPT = 2, 30, 7
ST_MEM = ("model=st_mem", "encoder.size=small", "encoder.num_sep_tokens=2", "encoder.standardize_patches=true")
OTHERS = {
    "mtae": ("model=mtae", "encoder.size=small"),
    "mlae": ("model=mlae", "encoder.size=small"),
    "signal_mae": ("model=signal_mae", "encoder.size=turgut_tiny"),
    "jepa": ("model=jepa", "encoder.size=small"),
    "simclr": ("model=simclr", "encoder.size=resnet18"),
}
CLIP = "clip_norm=1.0"
PRODUCTS = ((2048, 2048, 2048), (3072, 384, 1536), (3072, 1536, 384), (4096, 1024, 1024))


def run_of(*typed: str, precision: str = "float32") -> Run:
    """The shipped run with other choices; keys of the encoder are short."""
    told = [f"model.{key}" if key.startswith("encoder.") else key for key in typed]
    stages = [f"task.{stage}.{key}" for stage in ("pretrain", "finetune") for key in (f"precision={precision}", CLIP)]
    window = [f"data.window_s={NUM_SAMPLES / 250}", "data.sampling_rate_hz=250", f"data.leads=[{','.join(LEADS)}]"]
    return checked(compose_choices(["command=show", "data=synthetic", *window, *stages, *told]).tree).run


# -------- the straightforward one


class PlainBlock(nn.Module):
    """A pre-norm block with its attention spelt out; its parts have the names that ours have."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        inner = num_heads * HEAD_WIDTH
        self.attention = nn.ModuleDict({"qkv": nn.Linear(width, 3 * inner), "out": nn.Linear(inner, width)})
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, factors: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); the branches times the (B, 2) `factors`."""
        batch, length, _ = tokens.shape
        query, key, value = (
            part.view(batch, length, self.num_heads, HEAD_WIDTH).transpose(1, 2)
            for part in self.attention["qkv"](self.attention_norm(tokens)).chunk(3, dim=-1)
        )
        weights = (query @ key.transpose(-2, -1) / math.sqrt(HEAD_WIDTH)).softmax(dim=-1)
        mixed = self.attention["out"]((weights @ value).transpose(1, 2).reshape(batch, length, -1))
        tokens = tokens + (mixed if factors is None else mixed * factors[:, 0, None, None])
        changed = self.mlp(self.mlp_norm(tokens))
        return tokens + (changed if factors is None else changed * factors[:, 1, None, None])


class PlainEncoder(nn.Module):
    """ST-MEM's encoder: separator, patches, separator of each lead, then the next lead's."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Sequential(nn.LayerNorm(PATCH), nn.Linear(PATCH, WIDTH), nn.LayerNorm(WIDTH))
        self.positions = nn.Parameter(torch.zeros(NUM_SEP + NUM_PATCHES, WIDTH), requires_grad=False)
        self.sep_token = nn.Parameter(torch.zeros(WIDTH))
        self.lead_embeddings = nn.Parameter(torch.zeros(len(LEADS), WIDTH))
        self.blocks = nn.ModuleList(PlainBlock(WIDTH, HEADS) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, patches: Tensor, kept: Tensor | None = None, factors: Tensor | None = None) -> Tensor:
        """(B, C, N, P) -> (B, C, K + 2, D): without the final norm, a separator at each end."""
        tokens = self.patch_embedding(patches) + self.positions[NUM_SEP:]
        if kept is not None:
            tokens = tokens.gather(2, kept[..., None].expand(-1, -1, -1, WIDTH))
        first, last = (
            (self.sep_token + self.positions[end]).expand(*tokens.shape[:2], 1, -1) for end in range(NUM_SEP)
        )
        tokens = torch.cat([first, tokens, last], dim=2) + self.lead_embeddings[:, None]
        sequence = tokens.flatten(1, 2)
        for index, block in enumerate(self.blocks):
            sequence = block(sequence, None if factors is None else factors[:, index])
        return sequence.view(tokens.shape)


class PlainDecoder(nn.Module):
    """ST-MEM's decoder, which is run for one lead at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(WIDTH, DECODER_WIDTH)
        self.mask_token = nn.Parameter(torch.zeros(DECODER_WIDTH))
        self.register_buffer("positions", torch.zeros(NUM_PATCHES, DECODER_WIDTH))
        self.blocks = nn.ModuleList(PlainBlock(DECODER_WIDTH, DECODER_HEADS) for _ in range(DECODER_DEPTH))
        self.norm = nn.LayerNorm(DECODER_WIDTH, eps=1e-6)
        self.head = nn.Linear(DECODER_WIDTH, PATCH)

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """(B, C, K + 2, D) and where each patch lies among kept and hidden ones (B, C, N) -> (B, C, N, P)."""
        embedded = self.embedding(tokens)
        leads = []
        for lead in range(tokens.shape[1]):
            own = embedded[:, lead]
            masks = self.mask_token.expand(len(own), NUM_PATCHES - NUM_KEPT, -1)
            patches = torch.cat([own[:, 1:-1], masks], dim=1)
            patches = patches.gather(1, restore[:, lead, :, None].expand(-1, -1, DECODER_WIDTH)) + self.positions
            sequence = torch.cat([own[:, :1], patches, own[:, -1:]], dim=1)
            for block in self.blocks:
                sequence = block(sequence)
            leads.append(self.head(self.norm(sequence))[:, 1:-1])
        return torch.stack(leads, dim=1)


class PlainPretraining(nn.Module):
    """Masked autoencoding as the paper has it: (B, C, T) and noise (B, C, N) -> the error on hidden patches."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = PlainEncoder(), PlainDecoder()

    def forward(self, signal: Tensor, noise: Tensor) -> Tensor:
        """The loss."""
        patches = signal.unflatten(2, (NUM_PATCHES, PATCH))
        order = noise.argsort(dim=-1)
        restore = order.argsort(dim=-1)
        kept = order[..., :NUM_KEPT]
        decoded = self.decoder(self.encoder.norm(self.encoder(patches, kept)), restore)
        target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        error = (decoded - target).square().mean(-1)
        hidden = (restore >= NUM_KEPT).to(error.dtype)
        return (error * hidden).sum() / hidden.sum()


class PlainClassifier(nn.Module):
    """Fine-tuning: the norm of the mean over all patches' tokens, then a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = PlainEncoder().requires_grad_(True), nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, signal: Tensor, factors: Tensor) -> Tensor:
        """(B, C, T) and drop path's factors (B, depth, 2) -> logits (B, K)."""
        tokens = self.encoder(signal.unflatten(2, (NUM_PATCHES, PATCH)), factors=factors)
        return self.head(self.encoder.norm(tokens[:, :, 1:-1].mean(dim=(1, 2))))


# -------- FLOPs


def linear_flops(rows: int, num_in: int, num_out: int) -> int:
    """A multiplication and an addition for each weight and row."""
    return 2 * rows * num_in * num_out


def block_flops(sequences: int, length: int, width: int, heads: int) -> int:
    """A block's forward products: queries, keys and values, two of attention, its output, two layers of the MLP."""
    rows, inner = sequences * length, heads * HEAD_WIDTH
    layers = linear_flops(rows, width, 3 * inner) + linear_flops(rows, inner, width)
    return layers + 2 * linear_flops(rows, width, 4 * width) + 4 * sequences * heads * length**2 * HEAD_WIDTH


def pretraining_flops(batch: int = NUM_RECORDS) -> int:
    """Of a pre-training step; gradients take twice the forward products, but the patches themselves have none."""
    leads = len(LEADS)
    embedding = linear_flops(batch * leads * NUM_KEPT, PATCH, WIDTH)
    encoder = DEPTH * block_flops(batch, leads * (NUM_SEP + NUM_KEPT), WIDTH, HEADS)
    decoder = linear_flops(batch * leads * (NUM_SEP + NUM_KEPT), WIDTH, DECODER_WIDTH)
    decoder += DECODER_DEPTH * block_flops(batch * leads, NUM_SEP + NUM_PATCHES, DECODER_WIDTH, DECODER_HEADS)
    decoder += linear_flops(batch * leads * (NUM_PATCHES - NUM_KEPT), DECODER_WIDTH, PATCH)
    return 2 * embedding + 3 * (encoder + decoder)


def finetuning_flops(batch: int = NUM_RECORDS) -> int:
    """Of a fine-tuning step."""
    leads = len(LEADS)
    embedding = linear_flops(batch * leads * NUM_PATCHES, PATCH, WIDTH)
    encoder = DEPTH * block_flops(batch, leads * (NUM_SEP + NUM_PATCHES), WIDTH, HEADS)
    return 2 * embedding + 3 * (encoder + linear_flops(batch, WIDTH, NUM_CLASSES))


def counted_flops(loss: Callable[[], Tensor]) -> int:
    """Of a loss and its gradients, as torch counts what it runs."""
    torch.backends.mkldnn.enabled = False  # counted are products; what computes them is all the same
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss().backward()
    torch.backends.mkldnn.enabled = True
    return int(counter.get_total_flops())


# -------- steps


@dataclass
class Prepared:
    """A side's model on a batch, and what measures its output; a step that can be taken again and again."""

    module: nn.Module
    signal: Tensor
    drawn: Any
    measure: Callable[[Tensor], Tensor]
    step: Callable[[], object] = lambda: None

    def loss(self) -> Tensor:
        """The loss, with a graph."""
        return self.measure(self.module(self.signal, self.drawn))


def prepared(side: str, case: str, device: torch.device) -> Prepared:
    """A side's step of pre-training (of ST-MEM, or another method by its name) or of fine-tuning."""
    run = run_of(*OTHERS.get(case, ST_MEM), precision="bfloat16" if side == "bfloat16" else "float32")
    torch.manual_seed(0)
    found = finetuned(run, side) if case == "finetuning" else pretrained(run, side)
    found.module.to(device).train()
    found.signal = found.signal.to(device)
    found.drawn = (
        found.drawn.to(device)
        if isinstance(found.drawn, Tensor)
        else {name: draw.to(device) for name, draw in found.drawn.items()}
    )
    stage: Stage = run.task.finetune if case == "finetuning" else run.task.pretrain
    if side == "plain":
        found.step = functools.partial(plain_step, found, plain_optimizer(found.module, stage))
        return found
    groups = parameter_groups(found.module, weight_decay=0.05, decay_biases_and_norms=False)
    found.step = functools.partial(our_step, found, build_optimizer(stage, groups), stage, Workers(device=device))
    return found


def pretrained(run: Run, side: str) -> Prepared:
    """Pre-training by the run's method, without a step."""
    task = build_pretext_on(run.model, build_encoder(run))
    views = (task.num_views,) if task.num_views > 1 else ()
    signal = torch.randn(NUM_RECORDS, *views, len(LEADS), NUM_SAMPLES)
    draws = task.draw(NUM_RECORDS, torch.Generator().manual_seed(1))
    if side != "plain":
        return Prepared(task, signal, draws, lambda loss: loss)
    plain = PlainPretraining()
    plain.load_state_dict(task.state_dict())
    return Prepared(plain, signal, draws["noise"], lambda loss: loss)


def finetuned(run: Run, side: str) -> Prepared:
    """Fine-tuning of the run's encoder, without a step."""
    ours = Classifier(build_encoder(run), NUM_CLASSES, drop_path=0.1, head_init_std=0.01)
    signal = torch.randn(NUM_RECORDS, len(LEADS), NUM_SAMPLES)
    draws = ours.draw(NUM_RECORDS, torch.Generator().manual_seed(1))
    targets = torch.rand(NUM_RECORDS, NUM_CLASSES).round()

    def measure(logits: Tensor) -> Tensor:
        return multilabel_loss(logits, targets.to(logits.device), label_smoothing=0.0)

    if side != "plain":
        return Prepared(ours, signal, draws, measure)
    plain = PlainClassifier()
    plain.load_state_dict(ours.state_dict())
    return Prepared(plain, signal, draws["drop_path"], measure)


def our_step(found: Prepared, optimizer: torch.optim.Optimizer, stage: Stage, workers: Workers) -> None:
    """An epoch of one batch, which asks the device twice where a longer one asks once in 64 steps."""
    train_epoch(
        iter([Share(found.loss, NUM_RECORDS, NUM_RECORDS)]),
        num_batches=1,
        module=found.module,
        optimizer=optimizer,
        stage=stage,
        stage_epoch=1,
        workers=workers,
        after_step=getattr(found.module, "after_step", None),
    )


def plain_optimizer(module: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """AdamW as torch makes it."""
    groups = parameter_groups(module, weight_decay=0.05, decay_biases_and_norms=False)
    return torch.optim.AdamW(groups, lr=stage.peak_lr, betas=stage.optimizer.betas)


def plain_step(found: Prepared, optimizer: torch.optim.Optimizer) -> float:
    """Loss, gradients, clipping, update, as a tutorial has them."""
    optimizer.zero_grad()
    loss = found.loss()
    loss.backward()
    nn.utils.clip_grad_norm_(found.module.parameters(), 1.0)
    optimizer.step()
    return loss.item()


# -------- measuring


def rate_of(product: Callable[[Tensor], Tensor], rows: int, num_in: int, num_out: int, device: torch.device) -> float:
    """GFLOP/s of a product of (rows, num_in) with a matrix, the best of five."""
    values = torch.randn(rows, num_in, device=device)
    product(values)
    seconds = min(_timed(lambda: product(values), device) for _ in range(5))
    return linear_flops(rows, num_in, num_out) / seconds / 1e9


@torch.no_grad()
def matrix_rates(device: torch.device) -> tuple[float, float]:
    """GFLOP/s of the fastest large float32 product: by torch.mm, and by it or a layer of ours."""
    own, any_way = 0.0, 0.0
    for rows, num_in, num_out in PRODUCTS:
        layer = Linear(num_in, num_out, bias=False).to(device)
        product = functools.partial(torch.mm, mat2=layer.weight.t())
        own = max(own, rate_of(product, rows, num_in, num_out, device))
        any_way = max(any_way, own, rate_of(layer, rows, num_in, num_out, device))
    return own, any_way


def _timed(call: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def serve(side: str, device_name: str, threads: int, pipe: Connection) -> None:
    """A side's process: for each case that is asked for, the seconds of a step, or the rates of the machine."""
    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = side != "own_mm"
    device = torch.device(device_name)
    steps: dict[str, Callable[[], object]] = {}
    while (case := pipe.recv()) is not None:
        if case == "rates":
            pipe.send(matrix_rates(device))
            continue
        if case not in steps:
            steps[case] = prepared(side, case, device).step
            for _ in range(2):
                _timed(steps[case], device)
        pipe.send(_timed(steps[case], device))


@dataclass
class Side:
    """The parent's end of a side's process."""

    process: Any
    pipe: Connection

    def ask(self, case: str) -> Any:
        """What the process answers."""
        self.pipe.send(case)
        return self.pipe.recv()


def started(sides: tuple[str, ...], device: str, threads: int) -> dict[str, Side]:
    """A process for each side, waiting to be asked."""
    context = multiprocessing.get_context("spawn")
    running = {}
    for side in sides:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(side, device, threads, theirs), daemon=True)
        process.start()
        running[side] = Side(process, ours)
    return running


def measured(device: str, threads: int, rounds: int) -> tuple[dict[tuple[str, str], list[float]], tuple[float, float]]:
    """Seconds of every (side, case) in turn, round by round, and the machine's best rates."""
    sides = ("plain", "ours", "own_mm") if device == "cpu" else ("plain", "ours", "bfloat16")
    running = started(sides, device, threads)
    seconds: dict[tuple[str, str], list[float]] = {}
    rates = (0.0, 0.0)
    for _ in range(rounds):
        found = running["ours"].ask("rates")
        rates = (max(rates[0], found[0]), max(rates[1], found[1]))
        for side, case in turns(sides):
            seconds.setdefault((side, case), []).append(running[side].ask(case))
    for side in running.values():
        side.pipe.send(None)
        side.process.join()
    return seconds, rates


def turns(sides: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Who steps when: the sides side by side in each case, and the other methods, which ours alone has."""
    for case in ("pretraining", "finetuning"):
        for side in sides:
            yield side, case
    for case in OTHERS:
        yield "ours", case


def flops_of(case: str) -> int:
    """The matrix FLOPs of a step."""
    if case == "pretraining":
        return pretraining_flops()
    if case == "finetuning":
        return finetuning_flops()
    return counted_flops(prepared("ours", case, torch.device("cpu")).loss)


def figures_of(device: str, seconds: dict[tuple[str, str], list[float]], rates: tuple[float, float]) -> list[Figure]:
    """What was measured on a device, as figures."""
    figures = [
        Figure(f"{device}_rate_of_torch_mm", rates[0], "GFLOP/s"),
        Figure(f"{device}_matrix_rate", rates[1], "GFLOP/s"),
    ]
    targets = {("ours", "pretraining"): 1.25, ("ours", "finetuning"): 1.0}
    for (side, case), found in seconds.items():
        plain = seconds.get(("plain", case))
        for suffix, statistic in (("", min), ("_median", statistics.median)):
            value, baseline = 1000 * statistic(found), 1000 * statistic(plain) if plain and side != "plain" else None
            ratio = None if baseline is None else baseline / value
            target = targets.get((side, case)) if not suffix else None
            name = f"{device}_{side}_{case}{suffix}"
            bound: Bound | None = None if target is None else "ratio at least"
            figures.append(Figure(name, value, "ms", baseline=baseline, ratio=ratio, target=target, bound=bound))
        rate = flops_of(case) / min(found) / 1e9
        least = {"plain": 0.5, "ours": 0.7}.get(side) if case in ("pretraining", "finetuning") else None
        name, bound = f"{device}_{side}_{case}_of_torch_mm", None if least is None else "at least"
        figures.append(Figure(name, rate / rates[0], "share", target=least, bound=bound))
        figures.append(Figure(f"{device}_{side}_{case}_of_matrix_rate", rate / rates[1], "share"))
    return figures


def main() -> None:
    """Measure and publish."""
    assert __doc__ is not None
    arguments = parse_arguments(
        __doc__,
        ("--threads", {"type": int, "default": 2, "help": "of each step on the CPU"}),
        ("--rounds", {"type": int, "default": 5, "help": "in which every step is taken once"}),
    )
    torch.set_num_threads(arguments.threads)
    figures = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        figures += figures_of(device, *measured(device, arguments.threads, arguments.rounds))
    publish(figures, arguments.json, not_measured=unless_on_gpu("a step on a GPU"))


if __name__ == "__main__":
    main()
