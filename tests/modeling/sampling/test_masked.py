import json
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modeling.generators import MaskGIT
from modeling.generators.base import MaskedGenerator
from modeling.sampling.guidance import GUIDANCE_SCHEDULES
from modeling.sampling.masked import least_certain, left_masked, sample_masked
from modeling.sampling.noise import SampleNoise, gumbel
from tests.modeling.generators.masked_models import BERT_TINY, masked_model
from tests.parity import filled, golden

KINDS = ["constant", "linear", "powercosine", "linear_anneal", "nocfg"]
SETTINGS: dict[str, Any] = {"num_steps": 6, "guidance_schedule": "linear", "guidance_scale": 4.5}
SETTINGS |= {"guidance_power": 3.0, "temperature": 9.5, "softmax_annealing": True}


def translate(released: dict[str, Any]) -> dict[str, Any]:
    """Settings of a golden file under our names."""
    return {
        "num_steps": released["num_sample_steps"],
        "guidance_schedule": released["guidance_decay"],
        "guidance_scale": released["guidance_scale"],
        "guidance_power": released.get("guidance_scale_pow", 3.0),
        "temperature": released["randomize_temperature"],
        "softmax_annealing": released.get("softmax_temperature_annealing", False),
    }


def uniforms(batch: int, num_steps: int = 6, num_tokens: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, num_steps, 2, num_tokens, dtype=torch.float64, generator=generator)


@pytest.fixture(scope="module")
def model() -> MaskedGenerator:
    return masked_model("bert_tiny")[0]


def check_generation(model: MaskedGenerator, arrays: dict[str, np.ndarray], kind: str) -> None:
    settings = translate(json.loads(str(arrays["gen_settings"]))[kind])
    assert settings["temperature"] == 0
    inputs = []
    tokens = sample_masked(
        model,
        torch.from_numpy(arrays[f"gen_{kind}_classes"]),
        **settings,
        trace=lambda step, tokens: inputs.append(tokens),
    )
    assert np.array_equal(torch.stack(inputs).numpy(), arrays[f"gen_{kind}_steps"])
    assert np.array_equal(tokens.numpy(), arrays[f"gen_{kind}_ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_bert_generation_equals_reference(kind):
    check_generation(*masked_model("bert_tiny"), kind)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "linear_anneal"]


@pytest.mark.parametrize("kind", ["linear_anneal", *SLOW])
def test_uvit_generation_equals_reference(kind):
    check_generation(*masked_model("uvit_small"), kind)


@pytest.mark.slow
def test_l32_generation_equals_reference():
    model, arrays = masked_model("generator_titok_l32")
    for kind in KINDS:
        check_generation(model, arrays, kind)


class Script(MaskedGenerator):
    """Says what is written in a golden file, step by step, and is its own source of noise."""

    def __init__(self, arrays: dict[str, torch.Tensor]) -> None:
        _, _, num_tokens, codebook_size = arrays["cond_logits"].shape
        super().__init__(codebook_size=codebook_size, num_classes=1, num_tokens=num_tokens)
        self.arrays, self.step = arrays, 0

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Conditional rows come first."""
        halves = [self.arrays[f"{half}_logits"][self.step] for half in ("cond", "uncond")]
        assert labels.tolist() == [0, 0, 1, 1][: len(tokens)]
        self.step += 1
        return torch.cat(halves)[: len(tokens)]

    def choose(self, logits: torch.Tensor, temperature: float, step: int) -> torch.Tensor:
        return (logits + temperature * gumbel(self.arrays["u_token"][step])).argmax(-1)

    def confidence(self, step: int) -> torch.Tensor:
        return gumbel(self.arrays["u_conf"][step])


@pytest.mark.parametrize("name", ["constant", "linear_anneal", "powercosine_anneal"])
def test_scripted_runs_equal_reference(name):
    prefix = f"script_{name}/"
    stored = {k.removeprefix(prefix): v for k, v in golden("generator_functions").items() if prefix in k}
    settings = translate(json.loads(str(stored.pop("settings"))))
    script = Script({key: torch.from_numpy(value) for key, value in stored.items()})
    inputs = []
    tokens = sample_masked(
        script,
        torch.tensor([0, 0]),
        **settings,
        noise=script,
        trace=lambda step, tokens: inputs.append(tokens),
    )
    assert np.array_equal(torch.stack(inputs).numpy(), stored["inputs"])
    assert np.array_equal(tokens.numpy(), stored["ids"])


@pytest.mark.parametrize(("num_tokens", "num_steps"), [(32, 8), (64, 8), (128, 64), (256, 12), (128, 16)])
def test_numbers_left_masked_equal_reference(num_tokens, num_steps):
    expected = golden("generator_functions")[f"infer_mask_len_N{num_tokens}_S{num_steps}"].tolist()
    start = unknown = torch.tensor([num_tokens])
    counts = []
    for step in range(num_steps - 1):
        unknown = left_masked((step + 1) / num_steps, start, unknown)
        counts += unknown.tolist()
    assert counts == expected[:-1]


def test_more_steps_than_tokens_open_one_at_a_time():
    start = unknown = torch.tensor([5, 1, 0])
    seen = []
    for step in range(9):
        unknown = left_masked((step + 1) / 10, start, unknown)
        seen.append(unknown[0].item())
        assert unknown[1:].tolist() == [1, 1]
    assert seen == [4, 3, 2, 1, 1, 1, 1, 1, 1]


def test_ties_at_the_cutoff_all_stay_masked():
    confidence = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]] * 3)
    unknown = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]]).bool()
    masked = least_certain(confidence, unknown, torch.tensor([3, 1, 1]))
    assert masked.int().tolist() == [[0, 1, 1, 1, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("schedule", GUIDANCE_SCHEDULES)
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_a_sample_does_not_depend_on_its_batch(model, schedule, scale):
    settings = SETTINGS | {"guidance_schedule": schedule, "guidance_scale": scale, "temperature": 2.0}
    labels, numbers = torch.arange(10) % 4, uniforms(10)
    together = sample_masked(model, labels, **settings, noise=SampleNoise(numbers))
    apart = [
        sample_masked(model, labels[i], **settings, noise=SampleNoise(numbers[i]))
        for i in torch.arange(10).split(3)
    ]
    assert torch.equal(torch.cat(apart), together)
    assert together.unique(dim=0).shape[0] == 10
    assert together.min() >= 0 and together.max() < 48 and together.dtype == torch.int64


def naive_sample(model: MaskedGenerator, label: int, numbers: torch.Tensor) -> list[int]:
    """One sample, place by place, with `SETTINGS`; `numbers` [K, 2, N]."""
    tokens, count, steps = [48] * 16, 16, 6
    for step in range(steps):
        with torch.no_grad():
            conditional, none = (model(torch.tensor([tokens]), torch.tensor([y]))[0] for y in (label, 10))
        left = 1 - (step + 1) / steps
        logits = (conditional + 4.5 * step / steps * (conditional - none)) / (0.5 + 0.8 * left)
        heat, confidence = 9.5 * left, {}
        for place in [place for place in range(16) if tokens[place] == 48]:
            if heat > 0:
                cumulative = (logits[place].double() / heat).softmax(-1).cumsum(-1)
                tokens[place] = int((cumulative <= numbers[step, 0, place]).sum())
            else:
                tokens[place] = int(logits[place].argmax())
            noise = -np.log(-np.log(numbers[step, 1, place].item()))
            confidence[place] = logits[place, tokens[place]].item() + heat * noise
        if step + 1 < steps:
            count = max(1, min(count - 1, int(16 * np.arccos((step + 1) / steps) / (np.pi / 2))))
            for place in sorted(confidence, key=confidence.get)[:count]:
                tokens[place] = 48
    return tokens


def test_sampling_equals_naive_loop(model):
    labels, numbers = torch.tensor([4, 9, 4]), uniforms(3, seed=1)
    tokens = sample_masked(model, labels, **SETTINGS, noise=SampleNoise(numbers))
    expected = [naive_sample(model, int(y), u) for y, u in zip(labels, numbers, strict=True)]
    assert tokens.tolist() == expected


@pytest.mark.parametrize("temperature", [0.0, 4.0])
def test_known_tokens_are_kept_and_each_sample_counts_its_own(model, temperature):
    """Rows with all, some, one and no places to fill, together and alone."""
    generator = torch.Generator().manual_seed(0)
    known = torch.randint(48, (5, 16), generator=generator)
    for row, places in enumerate([range(16), range(3, 12), [7], [], range(0, 16, 2)]):
        known[row, list(places)] = model.mask_token
    settings, labels, numbers = SETTINGS | {"temperature": temperature}, torch.arange(5), uniforms(5)
    inputs = []
    tokens = sample_masked(
        model,
        labels,
        **settings,
        noise=SampleNoise(numbers),
        known=known,
        trace=lambda step, tokens: inputs.append(tokens),
    )
    fixed = known != model.mask_token
    assert torch.equal(tokens[fixed], known[fixed]) and tokens.max() < 48
    masked = (torch.stack(inputs) == model.mask_token).sum(-1)
    assert masked[:, 0].tolist() == [16, 14, 12, 10, 8, 5]
    assert masked[:, 1].tolist() == [9, 8, 7, 6, 4, 3]
    assert masked[:, 2].tolist() == [1] * 6 and masked[:, 3].tolist() == [0] * 6
    for row in range(5):
        i = slice(row, row + 1)
        alone = sample_masked(model, labels[i], **settings, noise=SampleNoise(numbers[i]), known=known[i])
        assert torch.equal(alone, tokens[i])


def test_all_masked_given_explicitly_changes_nothing(model):
    labels, noise = torch.tensor([1, 2]), SampleNoise(uniforms(2))
    expected = sample_masked(model, labels, **SETTINGS, noise=noise)
    known = torch.full((2, 16), model.mask_token)
    assert torch.equal(sample_masked(model, labels, **SETTINGS, noise=noise, known=known), expected)
    assert (known == model.mask_token).all()


def test_unconditional_half_runs_only_where_it_counts(model):
    rows = []
    handle = model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        for schedule in GUIDANCE_SCHEDULES:
            settings = SETTINGS | {"guidance_schedule": schedule, "temperature": 0, "num_steps": 3}
            sample_masked(model, torch.tensor([1, 2]), **settings)
        sample_masked(model, torch.tensor([1, 2]), **(settings | {"guidance_scale": 0}))
    finally:
        handle.remove()
    assert rows == [4, 4, 4, 2, 4, 4, 2, 4, 4, 2, 2, 2]


def test_training_mode_does_not_drop_out_and_comes_back():
    model = filled(lambda: MaskGIT(**BERT_TINY, dropout=0.5, attention_dropout=0.5))
    labels, noise = torch.tensor([1, 2]), SampleNoise(uniforms(2))
    expected = sample_masked(model, labels, **SETTINGS, noise=noise)
    model.train()
    model.model["lm_head"].eval()
    assert torch.equal(sample_masked(model, labels, **SETTINGS, noise=noise), expected)
    modes = {name: module.training for name, module in model.named_modules()}
    assert [name for name, training in modes.items() if not training] == ["model.lm_head"]


def test_progress_and_output(model):
    seen = []
    settings = SETTINGS | {"temperature": 0}
    tokens = sample_masked(model, torch.tensor([1]), **settings, progress=lambda *step: seen.append(step))
    assert seen == [(step, 6) for step in range(1, 7)]
    assert not tokens.is_inference()
    one = sample_masked(
        model, torch.tensor([1]), **(SETTINGS | {"num_steps": 1}), noise=SampleNoise(uniforms(1))
    )
    with torch.no_grad():
        logits = model(torch.full((1, 16), model.mask_token), torch.tensor([1]))
    assert torch.equal(one, logits.argmax(-1))


class Operations(TorchDispatchMode):
    """Names of the operations that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_nothing_in_the_loop_waits_for_the_device(model):
    """No number is read back, and nothing has a size that depends on numbers, once the steps have begun."""
    waits = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}
    labels, noise, starts = torch.tensor([1, 2]), SampleNoise(uniforms(2)), []
    with Operations() as operations:
        sample_masked(
            model, labels, **SETTINGS, noise=noise, trace=lambda *_: starts.append(len(operations.names))
        )
    assert len(operations.names) - starts[0] > 100
    assert waits & set(operations.names[: starts[0]])  # the labels were looked at before
    assert not waits & set(operations.names[starts[0] :])


def test_sample_noise_draws_from_the_distribution():
    logits = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(0))
    numbers = torch.zeros(1, 1, 2, 20_000, dtype=torch.float64)
    numbers[0, 0, 0] = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:-1]
    drawn = SampleNoise(numbers).choose(logits.expand(1, 20_000, 6), 2.0, 0)
    share = drawn[0].bincount(minlength=6) / 20_000
    torch.testing.assert_close(share, (logits[0, 0] / 2).softmax(-1), atol=2e-4, rtol=0)


def test_gumbel_noise_is_finite_and_standard():
    ends = gumbel(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert ends.isfinite().all() and ends[0] < -3.8 and ends[1] > 36
    middle = gumbel((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    assert middle.mean().item() == pytest.approx(np.euler_gamma, abs=1e-3)
    assert middle.var().item() == pytest.approx(np.pi**2 / 6, abs=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must not be negative"),
        ({"noise": None}, "temperature=9.5 needs noise"),
        ({"noise": SampleNoise(uniforms(2))}, r"step 0: .* the uniforms are for 2 samples of 16 tokens in 6"),
        ({"labels": torch.zeros(1, 1, dtype=torch.long)}, r"labels have shape \[1, 1\]"),
        ({"labels": torch.tensor([11])}, "label 11 is out of range; choose 0 ... 10"),
        ({"labels": torch.tensor([-1])}, "label -1 is out of range; choose 0 ... 10"),
        ({"known": torch.zeros(1, 15, dtype=torch.long)}, r"shape \[1, 15\], expected \[1, 16\]"),
        ({"known": torch.full((1, 16), 49)}, r"known token 49 is out of range; choose 0 ... 48 \(mask\)"),
        ({"guidance_schedule": "cosine"}, "guidance_schedule='cosine' is unknown"),
        ({"num_steps": 0}, "num_steps=0"),
    ],
)
def test_bad_arguments_are_named(model, change, message):
    arguments = {"labels": torch.tensor([1]), "noise": SampleNoise(uniforms(1))} | SETTINGS | change
    with pytest.raises(ValueError, match=message):
        sample_masked(model, arguments.pop("labels"), **arguments)


def test_uniforms_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 6, 16\], expected \[B, num_steps, 2, N\]"):
        SampleNoise(torch.zeros(2, 6, 16))
