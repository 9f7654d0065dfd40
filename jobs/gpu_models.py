"""Models of recipes with random weights on a device, and what is timed of them; no file is read."""

from collections.abc import Callable

import torch
from torch import nn

from common.config import load_settings, merge_arguments
from data.stream import Batch
from evaluator.inception_fast import FastInception, full_precision
from evaluator.inception_network import InceptionV3
from modeling.factory import build_generator, build_tokenizer
from modeling.generators.base import Generator
from modeling.sampling.draw import draw, numbers_needed, settings_type
from modeling.sampling.noise import sample_uniforms
from modeling.tokenizers.base import Tokenizer
from training.compiler import compile_by_units
from training.generator_settings import GeneratorRun
from training.optim import build_optimizer
from training.precision import Precision
from training.randomness import ExampleRandom
from training.run_lengths import in_steps
from training.task import StepContext
from training.tokenizer_settings import TokenizerRun
from training.unloaded import UnloadedTask, unloaded

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def settings_of(arguments: list[str]) -> TokenizerRun | GeneratorRun:
    """The run that `arguments` of a training program describe; lengths in steps."""
    kind = GeneratorRun if "generator" in merge_arguments(arguments) else TokenizerRun
    run = load_settings(kind, arguments)
    return in_steps(run, run.training.max_steps)


def task_of(arguments: list[str], device: torch.device) -> tuple[TokenizerRun | GeneratorRun, UnloadedTask]:
    """A run's settings, and its task with random weights on the device."""
    run = settings_of(arguments)
    found = unloaded(run)
    for module in (*found.task.modules.values(), *found.task.state.values(), *found.frozen.values()):
        give_values(module, device)
    return run, found


def model_of(arguments: list[str], device: torch.device) -> Tokenizer | Generator:
    """The model that a run trains, in eval mode."""
    return task_of(arguments, device)[1].task.modules["model"].eval().requires_grad_(False)


@torch.no_grad()
def give_values(module: nn.Module, device: torch.device) -> None:
    """Real tensors on the device in place of fake ones; matrices keep the scale of what passes through them."""
    if getattr(module, "section", None):
        build = build_tokenizer if isinstance(module, Tokenizer) else build_generator
        with torch.device(device):
            made = build(module.section)
        for part, source in zip(module.modules(), made.modules(), strict=True):
            part._parameters, part._buffers = source._parameters, source._buffers
        for parameter in module.parameters():
            # Fresh models begin with narrow weights and closed gates, which would hide what goes wrong behind them.
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        return
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, fake in tensors.items():
                if fake is not None:
                    tensors[name] = _value(fake, device)


def _value(fake: torch.Tensor, device: torch.device) -> torch.Tensor:
    made = torch.ones(tuple(fake.shape), dtype=fake.dtype, device=device)
    if fake.ndim > 1:
        made = made.normal_(std=fake[0].numel() ** -0.5)
    return nn.Parameter(made, fake.requires_grad) if isinstance(fake, nn.Parameter) else made


def random_batch(found: UnloadedTask, size: int, device: torch.device) -> Batch:
    """A batch as the trainer hands it to a task: labels on the host, the rest on the device."""
    batch: Batch = {}
    for name, (shape, dtype) in found.shapes.items():
        values = torch.rand if dtype.is_floating_point else torch.zeros
        place = "cpu" if name == "labels" else device
        batch[name] = values((size, *shape), dtype=dtype, device=place)
    return batch


def training_step(
    arguments: list[str], device: torch.device, *, precision: str, compiled: bool, batch_size: int
) -> Callable[[], None]:
    """A function that makes one update of a run's models, all phases on; `precision` is float32, bf16 or fp16."""
    run, found = task_of(arguments, device)
    task = found.task
    scaled = Precision("no" if precision == "float32" else precision, device)
    optimizers, modules = {}, task.modules
    for name, module in modules.items():
        module.train()
        if compiled:
            compile_by_units(module)
        scaled.cast(name, module)
        optimizers[name] = build_optimizer(module, task.optimizers[name])
    batch, start = random_batch(found, batch_size, device), max(phase.start for phase in task.phases())
    limit = run.training.max_grad_norm
    random = ExampleRandom(0, torch.arange(batch_size))

    def step() -> None:
        context = StepContext(step=start + 1, modules=modules, raw=modules, random=random, device=device)
        for phase in task.phases():
            loss, _ = phase.loss(batch, context)
            scaled.backward(phase.module, loss)
            scaled.update(phase.module, modules[phase.module], optimizers[phase.module], start + 1, limit)
            optimizers[phase.module].zero_grad()

    return step


def sampling(arguments: list[str], device: torch.device) -> Callable[[int], Callable[[], None]]:
    """For a batch size, a function that draws a batch in bfloat16 with the sampling settings of the recipe."""
    run = settings_of(arguments)
    generator = model_of(arguments, device).to(torch.bfloat16)
    settings = settings_type(generator)(**run.sampling)

    def of(batch_size: int) -> Callable[[], None]:
        labels = torch.arange(batch_size, device=device) % generator.num_classes
        uniforms = sample_uniforms(0, range(batch_size), numbers_needed(generator, settings)).to(device)
        return lambda: draw(generator, labels, uniforms, settings)

    return of


def coding(
    arguments: list[str], device: torch.device, batch_size: int
) -> dict[str, Callable[[], torch.Tensor]]:
    """Functions that encode and decode a batch under autocast to bfloat16."""
    tokenizer = model_of(arguments, device)
    images = torch.rand(batch_size, 3, tokenizer.image_size, tokenizer.image_size, device=device)

    def run(function: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16):
            return function(given)

    tokens = run(tokenizer.encode, images)
    return {
        "tokenizing": lambda: run(tokenizer.encode, images),
        "decoding": lambda: run(tokenizer.decode, tokens),
    }


def inception(device: torch.device, batch_size: int, side: int) -> Callable[[], None]:
    """A function that computes the float32 features of FID for a batch of images of `side` x `side` pixels."""
    network = InceptionV3().eval()
    fast = FastInception(network, device=device, dtype=torch.float32)
    images = torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8, device=device)

    def run() -> None:
        with torch.inference_mode(), full_precision(device):
            fast(images)

    return run
