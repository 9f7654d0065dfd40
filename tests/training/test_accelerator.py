"""Which modules FSDP wraps; what can be tested of it without GPUs."""

import os

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

from common.config import REPOSITORY, read_yaml
from modeling.factory import build_discriminator, build_generator
from modeling.layers.trainable import Block
from training.accelerator import shard_by_blocks, start
from training.settings import ExperimentSettings, TrainingSettings

SIZES = {"codebook_size": 64, "num_tokens": 16, "num_classes": 10}
BLOCKS = {
    "rar": "RARBlock",
    "gpt": "LlamaBlock",
    "factorized_ar": "LlamaBlock",
    "ibq_ar": "ModulatedLlamaBlock",
    "maskgit": "BertBlock",
    "uvit": "UViTBlock",
}


@pytest.fixture
def plugin(monkeypatch) -> FullyShardedDataParallelPlugin:
    """As `accelerate launch` makes it from configs/accelerate/fsdp.yaml."""
    for key, value in read_yaml(REPOSITORY / "configs" / "accelerate" / "fsdp.yaml")["fsdp_config"].items():
        monkeypatch.setenv(key.upper(), str(value).lower() if isinstance(value, bool) else str(value))
    return FullyShardedDataParallelPlugin()


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_wrapped(plugin, name):
    section = read_yaml(REPOSITORY / f"configs/debug/{name}.yaml")["generator"]
    with torch.device("meta"):
        generator = build_generator({**SIZES, **section})
    shard_by_blocks(plugin, generator)
    assert plugin.transformer_cls_names_to_wrap == [BLOCKS[name]]
    plugin.set_auto_wrap_policy(generator)
    wraps = fsdp2_prepare_auto_wrap_policy(plugin, generator)
    wrapped = [part for part in generator.modules() if wraps(part)]
    assert wrapped and wrapped == [part for part in generator.modules() if isinstance(part, Block)]
    # The next module has no blocks: it is wrapped as a whole.
    with torch.device("meta"):
        discriminator = build_discriminator({"name": "nlayer"})
    shard_by_blocks(plugin, discriminator)
    plugin.set_auto_wrap_policy(discriminator)
    wraps = fsdp2_prepare_auto_wrap_policy(plugin, discriminator)
    assert not any(wraps(part) for part in discriminator.modules())


@pytest.mark.parametrize("deterministic", [False, True])
def test_fastest_or_reproducible_kernels(engine, monkeypatch, deterministic):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    training = TrainingSettings(max_steps=1, deterministic=deterministic)
    start(training, ExperimentSettings(output_dir="unused"))
    assert torch.backends.cudnn.benchmark == (not deterministic)
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)
