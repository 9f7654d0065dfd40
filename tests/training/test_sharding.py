"""What sharded training refuses, and the pieces of it that need no second process; the rest is in tests/integration."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from common.build import ConfigError
from common.config import REPOSITORY, read_yaml
from modeling.factory import build_generator
from modeling.layers.trainable import blocks
from modeling.quantizers.vq import VectorQuantizer
from storage.shards import whole
from training import sharding
from training.clipping import clip_gradient
from training.ema import EMA
from training.optim import build_optimizer
from training.settings import OptimizerSettings, TrainingSettings
from training.sharding import ShardedModel, is_sharded, use_sharding

SIZES = {"codebook_size": 64, "num_tokens": 16, "num_classes": 10}
GENERATORS = ("rar", "gpt", "factorized_ar", "ibq_ar", "maskgit", "uvit")
SETTINGS = TrainingSettings(max_steps=1, sharding="full")


@pytest.fixture
def alone(tmp_path):
    """A group of one process: everything is a shard, and whole."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("options", "unshardable", "message"),
    [
        (
            {"mixed_precision": "fp16"},
            None,
            "mixed_precision=fp16 does not work with .*sharding=full; use bf16",
        ),
        (
            {},
            "losses.adaptive_weight=true",
            "sharding=full does not work with losses.adaptive_weight=true; use none",
        ),
    ],
)
def test_what_does_not_work_is_refused_by_name(options, unshardable, message):
    training = TrainingSettings(max_steps=1, sharding="full", **options)
    with pytest.raises(ConfigError, match=message):
        use_sharding(training, SimpleNamespace(unshardable=unshardable))


def test_one_process_has_nothing_to_share(capsys):
    assert not use_sharding(TrainingSettings(max_steps=1), SimpleNamespace(unshardable="anything"))
    assert not use_sharding(SETTINGS, SimpleNamespace(unshardable=None))
    assert "training.sharding=full has no effect on one process" in capsys.readouterr().out


@pytest.mark.parametrize("here", [1, 4, 3])
def test_hybrid_needs_several_nodes(monkeypatch, here):
    monkeypatch.setattr(sharding.distributed, "world_size", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    with pytest.raises(
        ConfigError, match=f"sharding=hybrid .* found 4 processes, {here} of them .*; use full"
    ):
        sharding._mesh("hybrid", torch.device("cpu"))


@pytest.mark.parametrize("name", GENERATORS)
def test_blocks_are_gathered_one_by_one(alone, name):
    section = read_yaml(REPOSITORY / f"configs/debug/{name}.yaml")["generator"]
    torch.manual_seed(0)
    generator = build_generator({**SIZES, **section})
    before = {n: t.clone() for n, t in generator.state_dict().items()}
    sharded = ShardedModel(generator, SETTINGS, torch.device("cpu"))
    assert is_sharded(generator) and all(isinstance(p, DTensor) for p in generator.parameters())
    assert all(type(block).__name__.startswith("FSDP") for block in blocks(generator))
    ordinary = sharded.whole(generator)
    assert (
        not is_sharded(ordinary) and not ordinary.training and type(ordinary).__name__ in str(type(generator))
    )
    assert ordinary.state_dict().keys() == before.keys()
    assert all(torch.equal(ordinary.state_dict()[n], t) for n, t in before.items())
    with torch.no_grad():  # the skeleton is an ordinary module: it has methods that `forward` is not part of
        tokens, labels = torch.zeros(2, 16, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
        for logits in (ordinary(tokens, labels), generator.eval()(tokens, labels)):
            assert torch.is_tensor(logits) or len(logits)


class Quantized(nn.Module):
    """A model with a codebook between two layers."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 8), nn.Linear(8, 4)
        self.quantize = VectorQuantizer(codebook_size=16, code_dim=8, online_clustering=True)

    def forward(self, x):
        latents = self.encoder(x)[:, :, None, None]
        result = self.quantize(latents)
        return self.decoder(result.quantized[:, :, 0, 0]).square().mean() + result.losses["quantizer_loss"]

    def decays(self, name, parameter):
        return parameter.ndim == 2 and "embedding" not in name


def test_a_model_of_both_kinds_trains_as_the_whole_does(alone):
    """Codebooks are not sharded: clipping, optimizer and averages see sharded and ordinary tensors in one model."""
    results = []
    for shard in (False, True):
        torch.manual_seed(0)
        model = Quantized()
        sharded = ShardedModel(model, SETTINGS, torch.device("cpu")) if shard else None
        average = EMA(sharded.with_tensors(model.state_dict()) if shard else model, 0.9)
        optimizer = build_optimizer(model, OptimizerSettings(learning_rate=0.1))
        norms = []
        for step in range(1, 4):
            model(torch.arange(12.0).view(3, 4)).backward()
            norms.append(clip_gradient(model, 0.5))
            optimizer.step()
            optimizer.zero_grad()
            average.update(model, step)
        assert (type(model.quantize.embedding.weight.data) is torch.Tensor) and is_sharded(model) == shard
        assert [type(norm) for norm in norms] == 3 * [torch.Tensor] and norms[0] > 0.5
        tensors = {
            **model.state_dict(),
            **{f"average {n}": t for n, t in average.module.state_dict().items()},
        }
        results.append(({n: whole(t) for n, t in tensors.items()}, torch.stack(norms)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)


def test_without_a_limit_nothing_is_clipped(alone):
    assert clip_gradient(nn.Linear(2, 2), None) is None
