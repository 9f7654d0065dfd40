"""`auto` suits the machine, says why, and is kept by a resumed run; given values that do not suit are named."""

from types import SimpleNamespace

import pytest
import torch

import train_titok
from common import cores
from common.build import ConfigError
from common.config import load_settings, read_yaml
from training import auto_settings
from training.auto_settings import best_precision, settle, warn_of_batch
from training.settings import TrainingSettings
from training.tokenizer_settings import TokenizerRun

CPU = torch.device("cpu")
TITOK = ["config=configs/debug/titok.yaml", "schedule.warmup_steps=0", "training.save_every=1"]
AUTO = [
    *("training.per_gpu_batch_size=auto", "training.global_batch_size=12"),
    *("training.num_workers=auto", "training.mixed_precision=auto"),
]


@pytest.fixture
def laptop(monkeypatch):
    """A machine of 2 cores without bfloat16; `laptop.free` bytes are free."""
    facts = SimpleNamespace(
        free=8 * 10**9, cores=2, bf16=False, speeds={torch.float32: 1e11, torch.bfloat16: 2e10}
    )
    monkeypatch.setattr(auto_settings, "free_memory", lambda device: facts.free)
    monkeypatch.setattr(cores, "cores", lambda: facts.cores)
    monkeypatch.setattr(auto_settings, "has_bf16", lambda device: facts.bf16)
    monkeypatch.setattr(auto_settings, "operations_per_second", lambda device, dtype: facts.speeds[dtype])
    return facts


def settled(*options: str, output: object = "runs/none") -> TrainingSettings:
    run = load_settings(TokenizerRun, [*TITOK, f"experiment.output_dir={output}", *options])
    accelerator = SimpleNamespace(device=CPU, gradient_accumulation_steps=1)
    settle(run, accelerator)
    assert accelerator.gradient_accumulation_steps == run.training.gradient_accumulation_steps
    return run.training


def test_precision_of_a_cpu(laptop):
    assert best_precision(CPU, "high") == ("no", "because this device has no instructions for bfloat16")
    laptop.bf16 = True
    assert best_precision(CPU, "high")[0] == "no", "it has them, and they are no faster"
    laptop.speeds[torch.bfloat16] = 4e11
    precision, why = best_precision(CPU, "high")
    assert precision == "bf16" and "4.0 times as fast" in why
    assert best_precision(CPU, "medium")[0] == "no", "without a measurement: products use it already"


def test_precision_of_gpus(laptop, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    gpu = torch.device("cuda")
    assert best_precision(gpu, "high") == ("fp16", "because Tesla T4 has no bfloat16")
    assert best_precision(gpu, "high", sharded=True)[0] == "no"
    laptop.bf16 = True
    assert best_precision(gpu, "high")[0] == "bf16"


def test_the_micro_batch_is_the_largest_divisor_that_fits(laptop, capsys):
    training = settled(*AUTO)
    assert (training.per_gpu_batch_size, training.gradient_accumulation_steps) == (12, 1)
    assert (training.num_workers, training.mixed_precision, training.global_batch) == (0, "no", 12)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in said[:3]] == [
        "training.mixed_precision=auto: no",
        "training.num_workers=auto: 0",
        "training.per_gpu_batch_size=auto: 12",
    ]
    assert "GB that are free" in said[2] and said[3].startswith("time: at least ")
    run = load_settings(TokenizerRun, [*TITOK, *AUTO])
    plan = auto_settings._plan(run, training, CPU)
    laptop.free = int(plan.total(5) / auto_settings.USED["cpu"])  # five fit, and four divide twelve
    training = settled(*AUTO)
    assert (training.per_gpu_batch_size, training.gradient_accumulation_steps) == (4, 3)
    laptop.free = 10_000
    with pytest.raises(ConfigError, match="a micro-batch of one example takes about"):
        settled(*AUTO)


def test_a_global_batch_is_made_of_given_micro_batches():
    training = settled("training.per_gpu_batch_size=4", "training.global_batch_size=12")
    assert training.gradient_accumulation_steps == 3 and training.global_batch == 12
    with pytest.raises(
        ConfigError, match=r"global_batch_size=12 is no multiple of .*per_gpu_batch_size=5 x 1"
    ):
        settled("training.per_gpu_batch_size=5", "training.global_batch_size=12")
    with pytest.raises(ConfigError, match="gradient_accumulation_steps=2, but .* needs 3; leave it out"):
        settled(
            "training.per_gpu_batch_size=4",
            "training.global_batch_size=12",
            "training.gradient_accumulation_steps=2",
        )
    with pytest.raises(ConfigError, match=r"per_gpu_batch_size=auto needs training\.global_batch_size"):
        settled("training.per_gpu_batch_size=auto")


def test_given_values_are_kept_and_named_when_they_do_not_suit(laptop, capsys):
    training = settled("training.mixed_precision=bf16", "training.num_workers=8")
    assert (training.mixed_precision, training.num_workers) == ("bf16", 8)
    said = capsys.readouterr()
    assert "mixed_precision=bf16: a matrix product takes 5.0 times as long as in float32" in said.err
    assert "num_workers=8 in each of 1 processes is more than the 2 cores" in said.err
    assert said.out == ""
    laptop.speeds[torch.bfloat16] = 1e11
    settled("training.mixed_precision=bf16", "training.num_workers=0")
    assert capsys.readouterr().err == ""


def test_a_batch_that_memory_cannot_hold_is_named(laptop, capsys, monkeypatch):
    run = load_settings(TokenizerRun, [*TITOK, "training.per_gpu_batch_size=64"])
    task = SimpleNamespace(modules={"model": torch.nn.Linear(10, 10)})
    laptop.free = 10_000_000
    warn_of_batch(run, task, CPU)
    assert capsys.readouterr().err == "", "small models are not estimated"
    monkeypatch.setattr(auto_settings, "LARGE_MODEL", 100)
    warn_of_batch(run, task, CPU)
    said = capsys.readouterr().err
    assert "training.per_gpu_batch_size=64 takes about 0.0 GB, and 0.0 GB are free" in said
    assert "training.per_gpu_batch_size=auto training.global_batch_size=64" in said
    laptop.free = 8 * 10**9
    warn_of_batch(run, task, CPU)
    assert capsys.readouterr().err == ""


def test_a_resumed_run_keeps_what_was_chosen_or_says_what_changes(laptop, tmp_path, program, capsys):
    def train(steps: int):
        output = f"experiment.output_dir={tmp_path / 'run'}"
        done = program(train_titok, TokenizerRun, *TITOK, *AUTO, output, f"training.max_steps={steps}")
        assert done.code == 0, done.err
        return done, read_yaml(tmp_path / "run" / "config.yaml")["training"]

    laptop.bf16, laptop.speeds[torch.bfloat16] = True, 4e11
    _, stored = train(1)
    chosen = {"mixed_precision": "bf16", "per_gpu_batch_size": 12, "gradient_accumulation_steps": 1}
    assert (
        chosen.items() <= stored.items() and stored["global_batch_size"] == 12 and stored["num_workers"] == 0
    )
    laptop.speeds[torch.bfloat16] = 1e10  # another choice would be made today
    done, stored = train(2)
    assert chosen.items() <= stored.items()
    assert "training.mixed_precision=auto: bf16, as the run was begun" in done.out
    laptop.bf16 = False  # another machine
    three = [*AUTO, "training.max_steps=3"]
    plan = auto_settings._plan(load_settings(TokenizerRun, [*TITOK, *three]), settled(*three), CPU)
    laptop.free = int(plan.total(7) / auto_settings.USED["cpu"])
    done, stored = train(3)
    assert (stored["mixed_precision"], stored["per_gpu_batch_size"]) == ("no", 6)
    assert "this run was trained in bf16 so far, and continues in no" in done.err
    assert "this run had micro-batches of 12 so far, and continues with 6" in done.err
