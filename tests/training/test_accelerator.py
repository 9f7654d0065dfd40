"""What a launcher may not decide, and what kernels compute."""

import os

import pytest
import torch

from common.build import ConfigError
from training.accelerator import start
from training.settings import ExperimentSettings, TrainingSettings


def test_accelerates_own_sharding_is_refused(monkeypatch, engine):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch --use_fsdp` sets it
    with pytest.raises(ConfigError, match="set training.sharding=full"):
        start(TrainingSettings(max_steps=1), ExperimentSettings(output_dir="nowhere"))


@pytest.mark.parametrize("deterministic", [False, True])
def test_fastest_or_reproducible_kernels(engine, monkeypatch, deterministic):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    training = TrainingSettings(max_steps=1, deterministic=deterministic)
    start(training, ExperimentSettings(output_dir="unused"))
    assert torch.backends.cudnn.benchmark == (not deterministic)
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)
