"""GPT's layouts and forward passes against the references, and against an implementation with loops."""

import pytest
import torch

from modeling.generators import GENERATORS, GPT
from modeling.losses.tokens import autoregressive_loss
from tests.parity import assert_close, assert_layout, filled, golden

TINY = {"codebook_size": 48, "num_classes": 10, "num_tokens": 16}
TINY |= {"hidden_size": 64, "depth": 3, "num_heads": 4, "mlp_size": 160}
IMAGENET = {"codebook_size": 16_384, "num_classes": 1000, "num_tokens": 256}
GPT_B = {**IMAGENET, "hidden_size": 768, "depth": 12, "num_heads": 12, "mlp_size": 2048}
GPT_L = {**IMAGENET, "hidden_size": 1024, "depth": 24, "num_heads": 16, "mlp_size": 2816}


@pytest.fixture
def tiny() -> GPT:
    return filled(lambda: GPT(**TINY))


def batch(size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens and labels; the last label is "no class"."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(48, (size, 16), generator=generator)
    return tokens, torch.tensor([7, 2, 10])[:size]


@pytest.mark.parametrize(("name", "sizes"), [("llamagen_gpt_b", GPT_B), ("llamagen_gpt_l", GPT_L)])
def test_state_dict_is_the_released_one(name, sizes):
    with torch.device("meta"):
        model = GPT(**sizes)
    assert_layout(model, name)
    assert GENERATORS["gpt"] is GPT


@pytest.mark.slow
def test_gpt_b_forward_equals_reference():
    expected = golden("ut_llamagen_gpt_b")
    tokens = torch.zeros(2, 256, dtype=torch.long)  # what follows the stored tokens cannot matter
    tokens[:, :20] = torch.from_numpy(expected["tokens"])
    with torch.no_grad():
        logits = filled(lambda: GPT(**GPT_B))(tokens, torch.tensor([207, 1000]))[:, :21]
    assert_close(logits[..., ::64], expected["logits_sub"], atol=1e-3)
    assert_close(logits.logsumexp(-1), expected["logsumexp"], atol=1e-3)
    assert_close(logits[0, -1], expected["last_logits_row0"], atol=1e-3)
    assert torch.equal(logits.argmax(-1), torch.from_numpy(expected["argmax"]).long())
    assert_close(autoregressive_loss(logits, tokens[:, :20])[0], expected["ce"], atol=1e-5, rtol=1e-4)


def naive_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One head `[T, d]`, place by place."""
    rows = [(q[t] @ k[: t + 1].T / q.shape[1] ** 0.5).softmax(-1) @ v[: t + 1] for t in range(len(q))]
    return torch.stack(rows)


def naive_turn(x: torch.Tensor) -> torch.Tensor:
    """`[17, 16]` on a grid of 4 x 4: the class vanishes, pairs of neighbours turn by row, then by column."""
    turned = torch.zeros_like(x)
    for place in range(16):
        row, column = divmod(place, 4)
        for j in range(8):
            angle = torch.tensor((row if j < 4 else column) * 10_000 ** (-(j % 4) / 4), dtype=x.dtype)
            a, b = x[place + 1, 2 * j], x[place + 1, 2 * j + 1]
            turned[place + 1, 2 * j] = a * angle.cos() - b * angle.sin()
            turned[place + 1, 2 * j + 1] = a * angle.sin() + b * angle.cos()
    return turned


def naive_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def naive_forward(
    state: dict[str, torch.Tensor], tokens: torch.Tensor, label: torch.Tensor, depth: int
) -> torch.Tensor:
    """One sample through 4 heads of width 16, written from the definition; `[17, V]`."""
    x = torch.cat(
        [state["cls_embedding.embedding_table.weight"][label][None], state["tok_embeddings.weight"][tokens]]
    )
    for layer in range(depth):
        weights = {
            name.removeprefix(f"layers.{layer}.").removesuffix(".weight"): tensor
            for name, tensor in state.items()
        }
        q, k, v = (naive_norm(x, weights["attention_norm"]) @ weights["attention.wqkv"].T).chunk(3, dim=-1)
        heads = [slice(16 * h, 16 * h + 16) for h in range(4)]
        mixed = [naive_attention(naive_turn(q[:, h]), naive_turn(k[:, h]), v[:, h]) for h in heads]
        x = x + torch.cat(mixed, dim=-1) @ weights["attention.wo"].T
        normed = naive_norm(x, weights["ffn_norm"])
        gate = normed @ weights["feed_forward.w1"].T
        inner = gate * gate.sigmoid() * (normed @ weights["feed_forward.w3"].T)
        x = x + inner @ weights["feed_forward.w2"].T
    return naive_norm(x, state["norm.weight"]) @ state["output.weight"].T


def test_forward_equals_naive_implementation():
    model = filled(lambda: GPT(**TINY | {"depth": 2}))
    tokens, labels = batch()
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    expected = torch.stack([naive_forward(state, t, y, 2) for t, y in zip(tokens, labels, strict=True)])
    with torch.no_grad():
        assert_close(model(tokens, labels), expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("rope", ["2d", "1d"])
def test_logits_see_earlier_tokens_only(rope):
    model = filled(lambda: GPT(**TINY, rope=rope))
    tokens, labels = batch()
    with torch.no_grad():
        before = model(tokens, labels)
        tokens[:, 9] = (tokens[:, 9] + 1) % 48
        changed = (model(tokens, labels) != before).any(dim=-1).any(dim=0)
    assert changed.tolist() == [False] * 10 + [True] * 7


def test_places_matter_in_their_own_way():
    """Same weights, other rotary positions: other logits; and 1-D positions need no square."""
    tokens, labels = batch()
    grid, row = (filled(lambda rope=rope: GPT(**TINY, rope=rope)) for rope in ("2d", "1d"))
    with torch.no_grad():
        assert (grid(tokens, labels) - row(tokens, labels)).abs().max() > 0.05
    GPT(**TINY | {"num_tokens": 15}, rope="1d")


def test_activation_checkpointing_changes_no_gradient():
    tokens, labels = batch()
    gradients = []
    for on in (False, True):
        model = filled(lambda on=on: GPT(**TINY, activation_checkpointing=on))
        autoregressive_loss(model(tokens, labels), tokens)[0].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())


def test_training_in_bfloat16_follows_float32(tiny):
    tokens, labels = batch()
    with torch.no_grad():
        exact = tiny(tokens, labels)
        with torch.autocast("cpu", torch.bfloat16):
            cast = tiny(tokens, labels)
    assert cast.dtype == torch.bfloat16
    assert (cast.float() - exact).abs().mean() < 0.02 * exact.std()


def test_initialisation():
    torch.manual_seed(0)
    model = GPT(**TINY)
    tokens, labels = batch()
    assert not model(tokens, labels).any()
    for name in (
        "tok_embeddings.weight",
        "layers.0.attention.wqkv.weight",
        "layers.0.feed_forward.w2.weight",
    ):
        assert model.state_dict()[name].std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(model.layers[0].ffn_norm.weight, torch.ones(64))


@pytest.mark.parametrize("dropout", ["dropout", "attention_dropout"])
def test_dropout_is_on_in_training_mode_only(dropout):
    model = filled(lambda: GPT(**TINY, **{dropout: 0.5}))
    tokens, labels = batch()
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(model(tokens, labels), model(tokens, labels))
        model.train()
        assert not torch.equal(model(tokens, labels), model(tokens, labels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 66}, "hidden_size=66 must be a multiple of num_heads=4"),
        ({"num_heads": 0}, "and num_heads=0 must be at least 1"),
        ({"hidden_size": 24}, "head_dim=6 must be a multiple of 4"),
        ({"hidden_size": 20, "rope": "1d"}, "head_dim=5 must be a multiple of 2"),
        ({"num_tokens": 15}, "num_tokens=15 is not a square grid; expected n [*] n tokens, or rope=1d"),
        ({"rope": "3d"}, "rope='3d' is unknown; choose 2d, 1d"),
        ({"codebook_size": 0}, "codebook_size=0"),
    ],
)
def test_bad_sizes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        GPT(**(TINY | change))


def test_bad_inputs_are_named(tiny):
    tokens, labels = batch()
    with pytest.raises(ValueError, match=r"\[3, 15\], expected \[B, 16\]"):
        tiny(tokens[:, :15], labels)
    with pytest.raises(ValueError, match="expected None: GPT supports raster order only"):
        tiny(tokens, labels, torch.arange(16).expand(3, -1))
