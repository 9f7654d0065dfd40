"""Which of the two networks moves first, and that both see one forward pass of the tokenizer."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from data.openmoji import OpenMoji
from modeling.losses.patchgan import PatchGAN
from modeling.quantizers.ibq import IBQ
from modeling.tokenizers.vqgan import VQGAN
from training.randomness import ExampleRandom
from training.settings import OptimizerSettings
from training.task import StepContext
from training.tasks.reconstruction import ReconstructionTask
from training.tasks.tokenizer import TokenizerSetup
from training.tokenizer_settings import TokenizerLossSettings

LOSS = TokenizerLossSettings(
    discriminator_weight=0.1,
    gan_loss="hinge_softplus",
    lecam_regularization_weight=0.05,
    lecam_form="logits",
)


class Counted(nn.Module):
    """Counts the calls of a module, as a wrapper for several processes would see them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *arguments, **options):
        self.calls += 1
        return self.module(*arguments, **options)


def make(**options) -> ReconstructionTask:
    torch.manual_seed(0)
    quantizer = IBQ(codebook_size=16, code_dim=4)
    shape = dict(image_size=16, base_channels=32, multipliers=(1, 1), num_blocks=1, z_channels=8)
    setup = TokenizerSetup(
        tokenizer=VQGAN(quantizer=quantizer, **shape),
        validation=OpenMoji(image_size=16, split="validation"),
        losses=replace(LOSS, **options),
        optimizer=OptimizerSettings(),
        batch_size=2,
    )
    return ReconstructionTask(
        setup,
        discriminator=PatchGAN(base_channels=4, num_layers=1),
        perceptual=None,
        discriminator_optimizer=OptimizerSettings(),
    )


def one_step(task: ReconstructionTask, images: torch.Tensor, step: int = 0) -> dict[str, float]:
    """What the engine does in a step, with plain gradient descent; returns what it would log."""
    counted = {name: Counted(module).train() for name, module in task.modules.items()}
    random = ExampleRandom(0, torch.arange(len(images)))
    context = StepContext(
        step=step, modules=counted, raw=task.modules, random=random, device=torch.device("cpu")
    )
    logged = {}
    for phase in task.phases():
        if step >= phase.start:
            loss, scalars = phase.loss({"images": images}, context)
            loss.backward()
            torch.optim.SGD(task.modules[phase.module].parameters(), lr=0.5).step()
            task.modules[phase.module].zero_grad()
            logged |= {name: float(torch.as_tensor(value).detach()) for name, value in scalars.items()}
    assert counted["model"].calls == 1
    return logged


def test_the_order_decides_who_sees_whom() -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    logged = {first: one_step(make(discriminator_first=first), images) for first in (False, True)}
    # The discriminator judges the same reconstructions either way ...
    assert logged[True]["discriminator_loss"] == pytest.approx(logged[False]["discriminator_loss"], rel=1e-5)
    assert logged[True]["reconstruction_loss"] == logged[False]["reconstruction_loss"]
    # ... and the tokenizer meets it after, or before, its update.
    assert abs(logged[True]["gan_loss"] - logged[False]["gan_loss"]) > 1e-4
    modules = {}
    for first in (False, True):
        task = make(discriminator_first=first)
        assert [phase.module for phase in task.phases()][first] == "model"
        one_step(task, images)
        modules[first] = task.modules
    for one, two in zip(*(m["discriminator"].parameters() for m in modules.values()), strict=True):
        torch.testing.assert_close(one, two)


def test_a_discriminator_that_rests_does_not_go_first() -> None:
    images = torch.rand(2, 3, 16, 16)
    logged = one_step(make(discriminator_first=True, discriminator_start=1), images)
    assert "discriminator_loss" not in logged and "gan_loss" not in logged
