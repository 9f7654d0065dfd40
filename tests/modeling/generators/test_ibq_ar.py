"""IBQTransformer's layouts, forward and cached passes against the reference, and naive modulated blocks."""

import pytest
import torch
import torch.nn.functional as F

from modeling.generators import GENERATORS, IBQTransformer
from modeling.losses.tokens import autoregressive_loss
from modeling.sampling.autoregressive import sample
from tests.modeling.generators.test_factorized_ar import Naive, released_layout
from tests.parity import assert_close, filled, golden, manifest, state_layout

SMALL = {"codebook_size": 128, "num_classes": 10, "num_tokens": 16}
SMALL |= {"hidden_size": 64, "depth": 3, "num_heads": 2, "mlp_size": 256}
IMAGENET = {"codebook_size": 16_384, "num_classes": 1000, "num_tokens": 256}
RELEASED = {
    "ibq_ar_b": {"hidden_size": 1024, "depth": 16, "num_heads": 16, "mlp_size": 2816},
    "ibq_ar_l": {"hidden_size": 1280, "depth": 20, "num_heads": 20, "mlp_size": 3584},
    "ibq_ar_xl": {"hidden_size": 1536, "depth": 24, "num_heads": 24, "mlp_size": 4096},
    "ibq_ar_xxl": {"hidden_size": 1920, "depth": 30, "num_heads": 30, "mlp_size": 5120},
}
VARIANTS = [{}, {"class_rotation": "identity"}, {"rope": "1d"}]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens and labels; the last label is "no class"."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(128, (3, 16), generator=generator), torch.tensor([7, 2, 10])


def decode(model: IBQTransformer, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Teacher-forced `[R, N, V]`."""
    session = model.start_decoding(labels)
    inputs = [None, *tokens[:, :-1].unbind(dim=1)]
    return torch.stack([session.next_logits(newest) for newest in inputs], dim=1)


@pytest.mark.parametrize("name", RELEASED)
def test_state_dict_is_the_released_one(name):
    with torch.device("meta"):
        model = IBQTransformer(**IMAGENET, **RELEASED[name])
    assert list(state_layout(model).items()) == list(released_layout(name).items())
    assert sum(p.numel() for p in model.parameters()) == manifest(name)["model_numel"]
    assert GENERATORS["ibq_ar"] is IBQTransformer and model.factors == (16_384,)


def test_forward_and_decoding_equal_reference():
    expected, model = golden("ibq_small"), filled(lambda: IBQTransformer(**SMALL))
    tokens, labels = (
        torch.from_numpy(expected["ar_idx"]).long(),
        torch.from_numpy(expected["ar_classes"])[:, 0],
    )
    places = torch.from_numpy(expected["ar_positions"])
    with torch.no_grad():
        logits = model(tokens, labels)
    assert_close(logits[:, places], expected["ar_logits"], atol=1e-4)
    nll = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
    assert_close(nll, expected["ar_nll"], atol=1e-4)
    assert_close(decode(model, tokens, labels)[:, places], expected["ar_logits"], atol=1e-4)


def test_greedy_tokens_equal_reference():
    expected, model = golden("ibq_small"), filled(lambda: IBQTransformer(**SMALL))
    assert expected["ar_greedy_gaps"].min() > 1e-3
    labels, scale = torch.from_numpy(expected["ar_greedy_classes"])[:, 0], float(expected["ar_greedy_cfg"])
    tokens = sample(model, labels, guidance_scale=scale, guidance_power=0, temperature=0)
    assert torch.equal(tokens, torch.from_numpy(expected["ar_greedy"]).long())


class NaiveIBQ(Naive):
    """Modulated blocks for one sample, in float64."""

    def __call__(self, tokens: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """`[N]` and a label -> logits `[N, V]`."""
        state = self.state
        condition = state["class_emb.embedding_table.weight"][label]
        silu = condition * condition.sigmoid()

        def modulation(name: str) -> tuple[torch.Tensor, ...]:
            vector = state[f"{name}.1.weight"] @ silu + state[f"{name}.1.bias"]
            return vector.split(self.options["hidden_size"])

        x = torch.cat([condition[None], state["tok_emb.weight"][tokens[:-1]]])
        for name in (f"blocks.{i}" for i in range(self.options["depth"])):
            g1, g2, k1, k2, t1, t2 = modulation(f"{name}.ada_lin")
            normed = self.norm(x, f"{name}.attention_norm") * (1 + k1) + t1
            q, k, v = self.linear(normed, f"{name}.attention.wqkv").chunk(3, dim=-1)
            mixed = []
            for h in range(self.heads):
                part = slice(h * self.width, (h + 1) * self.width)
                query, key = self.turned(q[:, part]), self.turned(k[:, part])
                scores = (query @ key.T / self.width**0.5).masked_fill(
                    torch.ones(16, 16, dtype=torch.bool).triu(1), -torch.inf
                )
                mixed.append(scores.softmax(-1) @ v[:, part])
            x = x + g1 * self.linear(torch.cat(mixed, dim=-1), f"{name}.attention.wo")
            normed = self.norm(x, f"{name}.ffn_norm") * (1 + k2) + t2
            gate = self.linear(normed, f"{name}.feed_forward.w1")
            inner = gate * gate.sigmoid() * self.linear(normed, f"{name}.feed_forward.w3")
            x = x + g2 * self.linear(inner, f"{name}.feed_forward.w2")
        scale, shift = modulation("head_nm.ada_lin")
        return self.linear(self.norm(x, "head_nm.rmsnorm") * (1 + scale) + shift, "head")


@pytest.mark.parametrize("change", VARIANTS)
def test_forward_and_decoding_equal_naive_implementation(change):
    model = filled(lambda: IBQTransformer(**SMALL, **change, dropout=0.5))
    (tokens, labels), naive = batch(), NaiveIBQ(model, SMALL | change)
    expected = torch.stack([naive(t, y) for t, y in zip(tokens, labels, strict=True)])
    with torch.no_grad():
        assert_close(model(tokens, labels), expected.numpy(), atol=2e-5)
    model.train()  # decoding never drops out
    assert_close(decode(model, tokens, labels), expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("cast", ["weights", "autocast"])
def test_bfloat16_follows_float32(cast):
    model = filled(lambda: IBQTransformer(**SMALL))
    tokens, labels = batch()
    with torch.no_grad():
        exact = model(tokens, labels)
        if cast == "weights":
            model.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast == "autocast"):
            results = model(tokens, labels), decode(model, tokens, labels)
    for result in results:
        assert result.dtype == torch.bfloat16
        assert (result.float() - exact).abs().mean() < 0.02 * exact.std()


def test_logits_see_earlier_tokens_only():
    model = filled(lambda: IBQTransformer(**SMALL))
    tokens, labels = batch()
    with torch.no_grad():
        before = model(tokens, labels)
        tokens[:, 9] = (tokens[:, 9] + 1) % 128
        changed = (model(tokens, labels) != before).any(dim=-1).any(dim=0)
    assert changed.tolist() == [False] * 10 + [True] * 6


def test_activation_checkpointing_changes_no_gradient():
    tokens, labels = batch()
    gradients = []
    for on in (False, True):
        model = filled(lambda on=on: IBQTransformer(**SMALL, activation_checkpointing=on))
        autoregressive_loss(model(tokens, labels), tokens)[0].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())


def test_initialisation():
    torch.manual_seed(0)
    model = IBQTransformer(**SMALL, gate_init=1e-4)
    assert not model(*batch()).any()
    gates, others = model.blocks[2].ada_lin.linear.weight.split([128, 256])
    assert gates.std().item() == pytest.approx(0.02 * 1e-4, rel=0.05)
    assert others.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.head_nm.ada_lin.linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.tok_emb.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model.blocks[0].ada_lin.linear.bias.any() and not model.head_nm.ada_lin.linear.bias.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 65}, "hidden_size=65 must be a multiple of num_heads=2"),
        ({"num_tokens": 15}, "num_tokens=15 is not a square grid"),
        ({"class_rotation": "one"}, "class_rotation='one' is unknown; choose zero, identity"),
    ],
)
def test_bad_sizes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        IBQTransformer(**(SMALL | change))


def test_bad_inputs_are_named():
    model, (tokens, labels) = IBQTransformer(**SMALL), batch()
    with pytest.raises(ValueError, match=r"\[3, 15\], expected \[B, 16\]"):
        model(tokens[:, :15], labels)
    with pytest.raises(ValueError, match="expected None: IBQTransformer supports raster order only"):
        model(tokens, labels, torch.arange(16).expand(3, -1))
    with pytest.raises(ValueError, match="label 11 is out of range"):
        model.start_decoding(torch.tensor([11]))
