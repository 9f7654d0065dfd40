"""Training steps, encoding, decoding and sampling on fake CUDA tensors, which need no GPU.

A fake tensor has a shape, a dtype and a device, and no numbers. What runs here shows that all tensors that meet are
on the same device, that no number is read back that the host would have to wait for, and what is copied between the
two. It does not show that kernels exist, nor what they compute. Steps are made by the trainer's own loop; only the
gradients are zeros made by hand, because PyTorch's backward pass asks for the context of a real GPU, and so do random
numbers drawn on the device (revived codes, which tests/modeling/quantizers/test_purity.py covers).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from common.config import REPOSITORY, read_yaml
from data.stream import Batch
from modeling.factory import build_discriminator, build_generator, build_tokenizer
from modeling.generators import GENERATORS as KINDS
from modeling.layers.transformer import TransformerBlock
from modeling.losses import DISCRIMINATORS
from modeling.losses.convnext import ConvNeXtDistance
from modeling.losses.lpips import LPIPS
from modeling.losses.perceptual import PerceptualLoss
from modeling.sampling import autoregressive, guidance
from modeling.sampling.draw import draw, numbers_needed, settings_type
from tests.host_traffic import HostTraffic
from tests.twins import GENERATORS, TOKENS, TWINS, twin_trainer
from training.randomness import seed_step
from training.report import Progress
from training.trainer import Trainer

pytestmark = [
    pytest.mark.usefixtures("engine"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument"),
]

CUDA = torch.device("cuda:0")
MUON = "optimizer.muon_learning_rate=0.02"
CASES = {name: (name, ()) for name in TWINS} | {
    "soft start": ("titok", ("losses.quantize_start=0", "losses.quantize_end=100")),
    "muon": ("titok", (MUON,)),
    "muon generator": ("rar", (MUON,)),
    "accumulation": ("rar", ("training.gradient_accumulation_steps=2",)),
    "no limit of gradients": ("vqgan", ("training.max_grad_norm=${oc.decode:null}",)),
    "recomputed blocks": ("gpt", ("generator.activation_checkpointing=true",)),
}


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    """Inside, tensors are fake; `.to` makes a real module fake."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def real_batches(trainer: Trainer) -> Iterator[Batch]:
    """What the loader gives, on the host and with numbers."""
    with unset_fake_temporarily():
        batches = trainer._batches(0)
    while True:
        with unset_fake_temporarily():
            batch = next(batches)
        yield batch


def on_cuda(trainer: Trainer, patch: pytest.MonkeyPatch) -> Trainer:
    """The trainer of a process with a GPU, after its preparation."""
    trainer.accelerator.state.device = trainer.device = trainer.precision.device = CUDA
    trainer.accelerator.device_placement = False  # fake parameters move once
    for frozen in ("teacher", "text"):
        if getattr(trainer.task, frozen, None) is not None:
            getattr(trainer.task, frozen).to(CUDA)

    def backward(name: str, loss: Tensor) -> None:
        assert loss.device == CUDA and loss.requires_grad and loss.ndim == 0
        for parameter in trainer.raw[name].parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    patch.setattr(trainer.precision, "backward", backward)
    patch.setattr(torch.autograd, "grad", lambda loss, weight, **options: (torch.zeros_like(weight),))
    trainer._prepare(step=0)
    trainer.observer = SimpleNamespace(due=lambda step: False)  # nothing is measured in these steps
    assert {p.device for m in trainer.raw.values() for p in (*m.parameters(), *m.buffers())} == {CUDA}
    return trainer


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., HostTraffic]:
    """`steps(twin, *options)` makes the second and the third step of a run on fake CUDA; nothing is logged."""

    def run(name: str, *options: str) -> HostTraffic:
        options = ("training.max_steps=50", "training.ema_decay=0.9", *options)
        if "discriminator" in read_yaml(REPOSITORY / f"configs/debug/{name}.yaml"):
            options += ("losses.discriminator_start=1",)
        trainer = twin_trainer(name, tmp_path / "run", monkeypatch, *options)
        batches, progress = real_batches(trainer), Progress(50, 1, 4, torch.device("cpu"))
        with FakeTensorMode(allow_non_fake_inputs=True):
            on_cuda(trainer, monkeypatch)
            with HostTraffic() as traffic:
                for step in (1, 2):
                    rates = trainer._follow_schedules(step)
                    seed_step(0, step)
                    trainer._update(step, batches, progress)
                    trainer._after_step(step + 1, rates, progress)
        return traffic

    return run


@pytest.mark.parametrize("case", CASES)
def test_a_training_step_never_waits_for_the_device(case, steps):
    name, options = CASES[case]
    assert steps(name, *options).waits == []


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda x: x + torch.ones(x.shape[-1]), "at least two devices, cuda:0 and cpu"),
        (lambda x: x * float(x.detach().mean()), "_local_scalar_dense"),
        (lambda x: x[x > 0].sum() + x, "nonzero|aten.index"),
    ],
)
def test_mistakes_are_seen(mistake, message, steps, monkeypatch):
    forward = TransformerBlock.forward
    monkeypatch.setattr(
        TransformerBlock, "forward", lambda self, x, rows=None: forward(self, mistake(x), rows)
    )
    with pytest.raises(Exception, match=message):
        steps("titok")


def test_a_copy_that_waits_is_seen(steps, monkeypatch):
    forward = TransformerBlock.forward

    def careless(self: TransformerBlock, x: Tensor, rows: slice | None = None) -> Tensor:
        return forward(self, x + torch.ones(x.shape[-1]).to(x.device), rows)

    monkeypatch.setattr(TransformerBlock, "forward", careless)
    assert set(steps("titok").waits) == {"aten._to_copy.default"}


@pytest.mark.parametrize("name", [name for name in TWINS if name not in GENERATORS])
def test_encoding_and_decoding(name, fake):
    with unset_fake_temporarily():
        run = read_yaml(REPOSITORY / f"configs/debug/{name}.yaml")
        section = run["tokenizer"]
        if section["name"] == "cluster":
            section.setdefault("teacher", run.get("teacher"))
        tokenizer = build_tokenizer(section).eval()
    tokenizer.to(CUDA)
    size = tokenizer.image_size
    text = {}
    if tokenizer.needs_text:
        text = {"text": torch.zeros(2, tokenizer.text_length, tokenizer.text_width, device=CUDA)}
    with torch.no_grad(), HostTraffic() as traffic:
        tokens = tokenizer.encode(torch.zeros(2, 3, size, size, device=CUDA))
        decoded = tokenizer.decode(tokens, **text)
    assert tokens.device == decoded.device == CUDA
    assert decoded.shape == (2, *tokenizer.prediction_shape)
    assert traffic.waits == []


@pytest.mark.parametrize("name", GENERATORS)
def test_sampling_waits_for_the_device_at_the_start_only(name, fake, monkeypatch):
    with unset_fake_temporarily():
        run = read_yaml(REPOSITORY / f"configs/debug/{name}.yaml")
        generator = build_generator({**TOKENS, **run["generator"]}).eval()
    generator.to(CUDA)
    settings = settings_type(generator)(**run["sampling"])
    # The two questions about labels that are asked once, before the first token.
    monkeypatch.setattr(type(generator), "check_labels", lambda self, labels: None)
    monkeypatch.setattr(
        Tensor, "unique", lambda x, return_inverse: (torch.empty_like(x), torch.empty_like(x))
    )
    schedule = guidance.power_cosine_schedule

    def real_schedule(*arguments: float) -> list[float]:  # numbers made on the host before the first token
        with unset_fake_temporarily():
            return schedule(*arguments)

    monkeypatch.setattr(autoregressive, "power_cosine_schedule", real_schedule)
    waits = []
    labels = torch.zeros(3, dtype=torch.int64, device=CUDA)
    uniforms = torch.zeros(3, numbers_needed(generator, settings), dtype=torch.float64)
    with HostTraffic() as traffic:
        tokens = draw(
            generator,
            labels,
            uniforms,
            settings,
            progress=lambda done, total: waits.append(len(traffic.waits)),
        )
    assert tokens.device == CUDA and tokens.shape == (3, generator.num_tokens)
    assert len(waits) > 3 and waits[-1] == waits[0] and len(traffic.waits) == waits[0]
    assert waits[0] <= 1, "the random numbers of the whole batch are copied at once"


def test_every_generator_is_here():
    names = {read_yaml(REPOSITORY / f"configs/debug/{name}.yaml")["generator"]["name"] for name in GENERATORS}
    assert names == KINDS.keys()


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminators(name, fake):
    with unset_fake_temporarily():
        options = {"image_size": 32} if name == "stylegan" else {}
        discriminator = build_discriminator({"name": name, **options})
    discriminator.to(CUDA)
    with HostTraffic() as traffic:
        assert discriminator(torch.zeros(2, 3, 32, 32, device=CUDA)).device == CUDA
    assert traffic.waits == []


def test_perceptual_losses(fake):
    with CUDA:
        networks = {"lpips": LPIPS(), "convnext": ConvNeXtDistance()}
    loss = PerceptualLoss(**networks, lpips_weight=1.0, convnext_weight=1.0)
    images = torch.zeros(2, 3, 32, 32, device=CUDA)
    with HostTraffic() as traffic:
        assert loss(images, images).device == CUDA
    assert traffic.waits == []
