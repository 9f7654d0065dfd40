"""Figures on paper agree within a tenth with what a real training allocates and writes."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import train_rar
import train_titok
from common.build import ConfigError, build_dataclass
from common.config import REPOSITORY, load_settings, read_yaml
from modeling.layers.trainable import blocks
from training.generator_settings import GeneratorRun
from training.gpus import GPUS
from training.memory_plan import Plan, sizes, usable
from training.run_lengths import in_steps
from training.step_cost import CostMode, fused_attention
from training.tokenizer_settings import TokenizerRun
from training.trainer import Trainer

TITOK = [
    "config=configs/debug/titok.yaml",
    *(f"tokenizer.{side}_{key}={value}" for side in ("encoder", "decoder") for key, value in
      {"hidden_size": 128, "depth": 3, "num_heads": 4}.items()),
    "losses.discriminator_start=0",
]  # fmt: skip
VQGAN = ["config=configs/debug/vqgan.yaml", "losses.discriminator_start=0", "tokenizer.base_channels=32"]
VQGAN += ["training.ema_decay=0.9"]
RAR = [
    "config=configs/debug/rar.yaml",
    *("generator.hidden_size=128", "generator.depth=4", "generator.num_heads=4", "generator.mlp_size=512"),
    "training.ema_decay=0.9",
]
COMMON = [
    *("training.max_steps=2", "training.save_every=2", "training.gradient_accumulation_steps=2"),
    "schedule.warmup_steps=0",
]
CASES = {
    "titok": (TITOK, 32),
    "titok, bf16": ([*TITOK, "training.mixed_precision=bf16"], 32),
    "titok, checkpointed": ([*TITOK, "tokenizer.activation_checkpointing=true"], 32),
    "vqgan": (VQGAN, 8),
    "rar": (RAR, 96),
    "rar with Muon": ([*RAR, "optimizer.muon_learning_rate=0.02"], 96),
}


@pytest.fixture
def allocated(monkeypatch):
    """Bytes that the allocator of the CPU gave out during the second step of a training at once."""
    peaks = []
    update = Trainer._update

    def profiled(self, step, *arguments):
        if step == 0:
            return update(self, step, *arguments)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            update(self, step, *arguments)
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        now = most = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            now += event.nbytes()
            most = max(most, now)
        peaks.append(most)

    monkeypatch.setattr(Trainer, "_update", profiled)
    return peaks


SLOW = ("titok", "rar")  # the cases beside them hold the same and more


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES])
def test_a_real_step_and_its_checkpoint(name, program, tmp_path, allocated, tiny_token_file):
    options, batch = CASES[name]
    options = [*options, *COMMON, f"training.per_gpu_batch_size={batch}"]
    options.append(f"experiment.output_dir={tmp_path / 'run'}")
    kind, main = (GeneratorRun, train_rar) if "rar" in name else (TokenizerRun, train_titok)
    if kind is GeneratorRun:
        options.append(f"data.tokens={tiny_token_file}")
    done = program(main, kind, *options)
    assert done.code == 0, done.err
    run = load_settings(kind, options)
    plan = Plan(in_steps(run, 2), like_gpu=False)
    folder = tmp_path / "run" / "checkpoints" / "step-00000002"
    files = {p.name: p.stat().st_size for p in folder.iterdir()}
    assert plan.checkpoint == pytest.approx(sum(files.values()), rel=0.1)
    held = plan.held
    assert held.average == pytest.approx(files["ema.safetensors"], rel=0.1)
    assert held.optimizer == pytest.approx(files["optimizers.pt"], rel=0.1)
    weights = sum(v for k, v in files.items() if k.endswith(".safetensors") and k != "ema.safetensors")
    assert held.parameters == pytest.approx(weights, rel=0.1)
    planned = held.gradients + plan.activations(batch)
    assert planned == pytest.approx(allocated[0], rel=0.1)


@pytest.fixture(scope="module")
def wide():
    """A plan of a RAR with wide blocks, in bf16 as on a GPU."""
    tree = read_yaml(REPOSITORY / "configs/rar/imagenet_b.yaml")
    tree["generator"] |= {"depth": 2, "hidden_size": 256, "num_heads": 4, "mlp_size": 1024, "num_tokens": 64}
    run = build_dataclass(GeneratorRun, tree)
    return Plan(in_steps(run, run.training.max_steps))


def test_what_is_held_is_counted_by_parameter(wide):
    model = wide.unloaded.task.modules["model"]
    numbers = sum(p.numel() for p in model.parameters())
    buffers = sizes(model) - 4 * numbers
    held = wide.held
    assert (held.parameters, held.gradients, held.optimizer) == (
        4 * numbers + buffers,
        4 * numbers,
        8 * numbers,
    )
    assert held.average == held.frozen == held.gathered == 0
    assert wide.checkpoint == 12 * numbers + buffers


def test_sharding_divides_what_is_held_and_gathers_two_blocks(wide):
    whole = wide.held
    for sharding, processes, shards in (("full", 64, 64), ("hybrid", 64, 8), ("full", 1, 1), ("none", 64, 1)):
        held = Plan(wide.run, processes=processes, sharding=sharding).held
        for name in ("parameters", "gradients", "optimizer"):
            assert getattr(held, name) == getattr(whole, name) // shards
        model = wide.unloaded.task.modules["model"]
        block = [sizes(b) for b in blocks(model)]
        outside = sizes(model) - sum(block)
        assert held.gathered == (0 if shards == 1 else outside + sum(block) // 2)  # two blocks, in bfloat16


def test_a_batch_that_fits_is_found(wide):
    room = wide.total(12)
    assert wide.largest_batch(room + 1) == 12 and wide.largest_batch(room - 1) == 11
    assert wide.largest_batch(wide.held.total) == 0
    assert wide.activations(6) == pytest.approx(wide.cost(6).bytes, rel=0.02)
    assert wide.flops(6) == wide.cost(6).flops


def test_operations_are_those_of_the_usual_rule(wide):
    """6 per parameter and token, for all parameters that multiply; attention comes on top."""
    model = wide.unloaded.task.modules["model"]
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embedding" not in n)
    assert wide.flops(1) == pytest.approx(6 * matrices * 65, rel=0.15)


def test_bytes_count_while_they_are_alive_and_once_per_storage():
    with CostMode() as cost:
        first = torch.ones(1000)
        view = first.view(10, 100).t()
        second = first + 1
        del first, view
        third = second * 2
    assert cost.most == 8000 and cost.now == 8000 and third.shape == (1000,)
    with CostMode([third]) as cost:
        third.add_(1)
    assert cost.most == 0, "it was there before"


def test_fused_attention_gives_the_same_and_keeps_no_weights():
    query, key, value = (torch.randn(2, 3, 50, 16, requires_grad=True) for _ in range(3))
    mask = torch.ones(50, 50, dtype=torch.bool).tril()
    plain = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with CostMode() as cost:
        fused = fused_attention(query, key, value, attn_mask=torch.zeros(50, 50).masked_fill(~mask, -1e9))
        fused.sum().backward()
    assert torch.allclose(plain, fused, atol=1e-5)
    assert cost.flops == 7 * 2 * 2 * 3 * 50 * 50 * 16


def test_gpus():
    assert GPUS["v100-32"].peak("bf16") == 0 and GPUS["a100-80"].peak("bf16") == 312e12
    assert all(0 < usable(gpu) < gpu.memory and gpu.peak("fp16") and gpu.peak("no") for gpu in GPUS.values())


def test_sizes_that_no_file_gives_are_asked_for():
    tree = read_yaml(REPOSITORY / "configs/rar/openmoji.yaml") | {
        "data": {"tokens": "missing.tokens", "tokenizer": None}
    }
    with pytest.raises(ConfigError, match=r"missing\.tokens does not exist.*give generator\.codebook_size, "):
        Plan(build_dataclass(GeneratorRun, tree))
