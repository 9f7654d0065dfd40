"""Mixed precision: where autocast is on, one loss scale per module, and what an overflow does."""

import copy

import pytest
import torch
from torch import nn

from common.build import ConfigError
from modeling.layers import trainable
from tests.training.test_trainer import Toy, assert_same, records, train, weights
from training.optim import build_optimizer
from training.precision import Precision
from training.settings import OptimizerSettings, ScheduleSettings

pytestmark = pytest.mark.usefixtures("engine")
CPU = torch.device("cpu")
FLAT = ScheduleSettings(name="constant")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("training.trainer.draw_curves", lambda folders, output: output.write_bytes(b"") > 0)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_forward_alone_is_cast_and_its_tensor_is_float32(name, dtype):
    seen = []

    class Model(nn.Linear):
        def forward(self, x):
            seen.append(super().forward(x))
            return seen[-1]

    model = Model(4, 2)
    earlier = copy.deepcopy(model)
    Precision(name, CPU).cast("model", model)
    x = torch.randn(3, 4)
    assert model(x).dtype == torch.float32 and seen[-1].dtype == dtype
    assert earlier(x).dtype == torch.float32 and seen[-1].dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


class Pair(Toy):
    """Without dropout; the critic learns from the first step on. Losses are small: nothing overflows by itself."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)

    def phases(self):
        model, critic = super().phases()
        return [model, type(critic)(module="critic", loss=critic.loss)]

    def critic(self, batch, context):
        loss, scalars = super().critic(batch, context)
        return 0.2 * loss, scalars

    def loss(self, batch, context):
        loss, scalars = super().loss(batch, context)
        return 0.1 * loss, scalars


def run(folder, precision, *, make=Pair, **options):
    defaults = {"schedule": FLAT, "log_every": 1, "preview_every": 0, "ema_decay": None}
    return train(folder, make=make, mixed_precision=precision, **defaults | options)


def test_accumulated_gradients_of_both_modules_are_those_of_float32(tmp_path):
    for precision in ("no", "fp16"):
        options = {"per_gpu_batch_size": 2, "gradient_accumulation_steps": 4}
        run(tmp_path / precision, precision, **options)
    pairs = list(zip(records(tmp_path / "no"), records(tmp_path / "fp16"), strict=True))
    for exact, scaled in pairs:
        if exact["kind"] == "train":
            assert scaled["loss_scale/model"] == scaled["loss_scale/critic"] == 65536
            for name in ("gradient_norm/model", "gradient_norm/critic", "total_loss", "critic_loss"):
                assert scaled[name] == pytest.approx(exact[name], rel=2e-2), name
    assert_same(tmp_path / "no", tmp_path / "fp16", rtol=1e-2, atol=1e-3)


class Overflowing(Pair):
    """The critic's gradient is infinite at one step, or missing, which leaves the critic as it is."""

    def __init__(self, value: float | None, step: int) -> None:
        super().__init__()
        self.value, self.step = value, step
        for parameter in self.modules["critic"].parameters():
            parameter.register_post_accumulate_grad_hook(self.replace)

    def critic(self, batch, context):
        self.now = context.step + 1
        return super().critic(batch, context)

    def replace(self, parameter):
        if self.now == self.step:
            parameter.grad = None if self.value is None else torch.full_like(parameter, self.value)


def test_an_overflow_skips_one_update_and_is_named(tmp_path, capsys):
    run(
        tmp_path / "fp16", "fp16", make=lambda: Overflowing(float("inf"), 4), save_every=1, keep_checkpoints=9
    )
    out = capsys.readouterr().out
    message = "float16: the gradient of critic overflowed, its update is skipped in step 4; the loss scale is now 32768"
    assert out.count("overflowed") == 1 and message in out
    logged = {r["step"]: r for r in records(tmp_path / "fp16") if r["kind"] == "train"}
    assert [r["skipped_updates/critic"] for r in logged.values()] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert not any(r["skipped_updates/model"] for r in logged.values())
    assert logged[8]["loss_scale/critic"] == 32768 and logged[8]["loss_scale/model"] == 65536
    assert "gradient_norm/critic" not in logged[4] and logged[5]["gradient_norm/critic"] > 0
    saved = weights(tmp_path / "fp16")
    critic = [saved[f"checkpoints/step-{s:08d}/critic.safetensors"]["weight"] for s in range(1, 9)]
    assert torch.equal(critic[3], critic[2]) and not torch.equal(critic[4], critic[3])
    # The same as in float32 where the critic leaves out that update.
    run(tmp_path / "no", "no", make=lambda: Overflowing(None, 4), save_every=1, keep_checkpoints=9)
    assert_same(tmp_path / "no", tmp_path / "fp16", rtol=1e-2, atol=1e-3)


def test_an_overflow_in_the_products_finds_a_scale_that_fits(tmp_path, capsys):
    class Steep(Pair):
        def loss(self, batch, context):
            loss, scalars = super().loss(batch, context)
            return 2000 * loss, scalars

    run(tmp_path, "fp16", make=Steep, max_steps=20, log_every=20)
    out = capsys.readouterr().out
    assert "the gradient of model overflowed, its update is skipped in step 1;" in out  # step 1 is logged
    last = [r for r in records(tmp_path) if r["kind"] == "train"][-1]
    assert 1 < last["loss_scale/model"] < 65536 and 0 < last["gradient_norm/model"] < float("inf")
    assert last["skipped_updates/model"] < 12


def test_loss_scales_come_back_after_a_resume(tmp_path):
    def make():
        return Overflowing(float("inf"), 2)

    run(tmp_path / "whole", "fp16", make=make)
    for steps in (3, 5, 8):
        run(tmp_path / "parts", "fp16", make=make, max_steps=steps)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints/step-00000008/optimizers.pt", weights_only=True)["scaler"]
        for name in ("whole", "parts")
    )
    assert whole == parts and whole["critic"]["scale"] == 32768 and whole["critic"]["_growth_tracker"] == 6


def test_a_checkpoint_of_one_scale_for_all_and_one_of_float32_can_be_continued():
    fresh = Precision("fp16", CPU)
    for name in ("model", "critic"):
        fresh.cast(name, nn.Linear(2, 2))
    fresh.load(None)
    fresh.load(Precision("no", CPU).state())
    assert fresh.state()["model"]["scale"] == 65536
    fresh.load(torch.amp.GradScaler("cpu", init_scale=128.0).state_dict())
    assert {name: state["scale"] for name, state in fresh.state().items()} == {"model": 128, "critic": 128}


def test_a_gradient_that_is_never_finite_ends_the_run(tmp_path):
    class Broken(Pair):
        def loss(self, batch, context):
            loss, scalars = super().loss(batch, context)
            return loss + (loss - loss.detach()).abs().sqrt(), scalars  # finite, with a gradient that is not

    message = (
        r"step 40: the gradient of model is not finite in float16 at any loss scale; .*mixed_precision=bf16"
    )
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, "fp16", make=Broken, max_steps=100, log_every=40, save_every=0)


class Block(trainable.Block):
    """Two layers that Muon trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


class Blocks(trainable.Trainable):
    """A layer for AdamW, and a block for Muon."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = nn.Linear(4, 8), Block()

    def forward(self, x):
        return self.block.layers(self.embed(x))


def test_muon_skips_an_overflow_and_goes_on(tmp_path):
    torch.manual_seed(0)
    start = Blocks()
    settings = OptimizerSettings(learning_rate=0.01, muon_learning_rate=0.02)

    def updated(name, scales):
        precision, module = Precision(name, CPU), copy.deepcopy(start)
        precision.cast("model", module)
        optimizer = build_optimizer(module, settings)
        for step, scale in enumerate(scales):
            inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
            precision.backward("model", scale * module(inputs).square().mean())
            precision.update("model", module, optimizer, step + 1, max_norm=1.0)
            optimizer.zero_grad()
            precision.report()
        return module.state_dict(), optimizer

    before = start.state_dict()
    kept, optimizer = updated("fp16", [1e9])
    assert all(torch.equal(kept[name], before[name]) for name in before)
    assert all(not t.any() for state in optimizer.state.values() for t in state.values())
    scaled, _ = updated("fp16", [1e9, 1.0, 1.0, 1e9, 1.0])
    exact, _ = updated("no", [1.0, 1.0, 1.0])
    for name in exact:
        assert not torch.equal(exact[name], before[name])
        torch.testing.assert_close(scaled[name], exact[name], rtol=2e-2, atol=2e-3)
