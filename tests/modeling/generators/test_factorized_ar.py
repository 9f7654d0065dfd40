"""FactorizedAR's layouts and forward passes against the reference, and against an implementation with loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from modeling.generators import GENERATORS, FactorizedAR
from modeling.losses.tokens import factorized_loss
from modeling.token_factors import TokenFactors
from tests.parity import assert_close, filled, golden, manifest, state_layout

TINY = {"codebook_size": 24, "factors": [4, 6], "num_classes": 10, "num_tokens": 16, "hidden_size": 64}
TINY |= {"depth": 2, "intra_depth": 2, "num_heads": 4, "mlp_size": 160}
IMAGENET = {"codebook_size": 2**18, "factors": [64, 4096], "num_classes": 1000, "num_tokens": 256}
RELEASED = {
    "magvit2_ar_b": {"hidden_size": 1024, "depth": 24, "intra_depth": 2, "num_heads": 16, "mlp_size": 2816},
    "magvit2_ar_l": {"hidden_size": 1280, "depth": 36, "intra_depth": 3, "num_heads": 20, "mlp_size": 3584},
    "magvit2_ar_xl": {"hidden_size": 1536, "depth": 48, "intra_depth": 4, "num_heads": 24, "mlp_size": 4096},
}
THREE = TINY | {"codebook_size": 60, "factors": [3, 4, 5]}
VARIANTS = [
    pytest.param(TINY, id="as released"),
    pytest.param(TINY | {"class_rotation": "identity"}, id="identity"),
    pytest.param(TINY | {"rope": "1d"}, id="row"),
    pytest.param(THREE, id="three factors"),
    pytest.param(THREE | {"rope": "1d", "class_rotation": "identity", "num_tokens": 7}, id="three, row"),
]


def batch(options: dict = TINY) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens and labels; the last label is "no class"."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, options["num_tokens"])
    tokens = torch.randint(options["codebook_size"], shape, generator=generator)
    return tokens, torch.tensor([7, 2, 10])


def released_layout(name: str) -> dict[str, list]:
    """Manifest without the frame of the file, which is the loader's business."""
    return {key.removeprefix("transformer."): entry for key, entry in manifest(name)["model"].items()}


@pytest.mark.parametrize("name", RELEASED)
def test_state_dict_is_the_released_one(name):
    with torch.device("meta"):
        model = FactorizedAR(**IMAGENET, **RELEASED[name])
    assert list(state_layout(model).items()) == list(released_layout(name).items())
    assert sum(p.numel() for p in model.parameters()) == manifest(name)["model_numel"]
    assert GENERATORS["factorized_ar"] is FactorizedAR and model.factors == (64, 4096)


def golden_tokens(expected: dict, prefix: str) -> torch.Tensor:
    """Whole tokens of the stored sub-tokens."""
    parts = [torch.from_numpy(expected[f"{prefix}_{part}"]).long() for part in ("pre", "post")]
    return TokenFactors((64, 4096)).join(torch.stack(parts, dim=-1))


@pytest.mark.slow
def test_ar_b_forward_equals_reference():
    expected = golden("magvit2_ar_b")
    model = filled(lambda: FactorizedAR(**IMAGENET, **RELEASED["magvit2_ar_b"]))
    contexts = []
    model.spatial_blocks[-1].register_forward_hook(lambda *call: contexts.append(call[-1]))
    tokens, labels = golden_tokens(expected, "idx"), torch.from_numpy(expected["classes"])[:, 0]
    with torch.no_grad():
        pre, post = model(tokens, labels)
        loss, _ = factorized_loss((pre, post), model.token_factors.split(tokens))
    places = torch.from_numpy(expected["positions"])
    assert_close(contexts[0][:, places], expected["spatial_out"], atol=1e-3)
    assert_close(pre[:, places], expected["logits_pre"], atol=2e-4)
    assert_close(post[:, places, :1024], expected["logits_post"], atol=2e-4)
    for logits, part, name in zip(
        (pre, post), model.token_factors.split(tokens).unbind(-1), ("pre", "post"), strict=True
    ):
        nll = F.cross_entropy(logits.transpose(1, 2), part, reduction="none")
        assert_close(nll, expected[f"per_token_nll_{name}"], atol=2e-4)
        assert nll.mean().item() == pytest.approx(float(expected[f"loss_{name}"]), abs=1e-5)
    assert loss.item() == pytest.approx(float(expected["loss_pre"] + expected["loss_post"]), abs=2e-5)


class Naive:
    """One sample through the model, written from the definition: float64, loops over heads, complex numbers."""

    def __init__(self, model: FactorizedAR, options: dict) -> None:
        self.state = {name: tensor.double() for name, tensor in model.state_dict().items()}
        self.options, self.heads = options, options["num_heads"]
        self.width = options["hidden_size"] // self.heads

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        """Rotary positions of one head, `[T, d]`: the class at place 0, then the tokens."""
        pairs, rows = self.width // 2, []
        for place, vector in enumerate(x):
            if place == 0:
                rows.append(vector * float(self.options.get("class_rotation") == "identity"))
                continue
            if self.options.get("rope") == "1d":
                a, b = vector[:pairs], vector[pairs:]
                angles = [place * 10_000 ** (-j / pairs) for j in range(pairs)]
            else:
                a, b = vector[0::2], vector[1::2]
                row, column = divmod(place - 1, math.isqrt(self.options["num_tokens"]))
                half = pairs // 2
                angles = [where * 10_000 ** (-j / half) for where in (row, column) for j in range(half)]
            z = torch.complex(a, b) * torch.exp(1j * torch.tensor(angles, dtype=torch.float64))
            both = (z.real, z.imag)
            rows.append(
                torch.cat(both) if self.options.get("rope") == "1d" else torch.stack(both, -1).flatten()
            )
        return torch.stack(rows)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.state[f"{name}.weight"]

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.state[f"{name}.weight"].T

    def blocks(self, x: torch.Tensor, kind: str, depth: int) -> torch.Tensor:
        """`[T, D] -> [T, D]`, every place attending to itself and those before."""
        for name in (f"{kind}.{i}" for i in range(depth)):
            normed = self.norm(x, f"{name}.attention_norm")
            q, k, v = self.linear(normed, f"{name}.attention.wqkv").chunk(3, dim=-1)
            mixed = []
            for h in range(self.heads):
                part = slice(h * self.width, (h + 1) * self.width)
                query, key, value = self.turned(q[:, part]), self.turned(k[:, part]), v[:, part]
                rows = [
                    (key[: t + 1] @ query[t] / self.width**0.5).softmax(-1) @ value[: t + 1]
                    for t in range(len(x))
                ]
                mixed.append(torch.stack(rows))
            x = x + self.linear(torch.cat(mixed, dim=-1), f"{name}.attention.wo")
            normed = self.norm(x, f"{name}.ffn_norm")
            gate = self.linear(normed, f"{name}.feed_forward.w1")
            inner = gate * gate.sigmoid() * self.linear(normed, f"{name}.feed_forward.w3")
            x = x + self.linear(inner, f"{name}.feed_forward.w2")
        return x

    def __call__(self, tokens: torch.Tensor, label: torch.Tensor) -> list[torch.Tensor]:
        """`[N]` and a label -> logits `[N, factors[g]]`."""
        factors = self.options["factors"]
        names = {2: ("pre_emb", "post_emb"), 3: ("pre_emb", "mid_emb_1", "post_emb")}[len(factors)]
        vectors = []  # of every token, its G sub-tokens
        for token in tokens.tolist():
            digits = []
            for size in factors:
                token, digit = divmod(token, size)
                digits.append(digit)
            pairs = zip(names, digits, strict=True)
            vectors.append([self.state[f"{name}.weight"][digit] for name, digit in pairs])
        first = self.state["class_emb.embedding_table.weight"][label]
        sequence = torch.stack([first, *(torch.stack(parts).sum(0) for parts in vectors[:-1])])
        contexts = self.blocks(sequence, "spatial_blocks", self.options["depth"])
        logits = [[] for _ in factors]
        for context, parts in zip(contexts, vectors, strict=True):
            own = torch.stack([context, *parts[:-1]])
            own = self.norm(self.blocks(own, "factorized_blocks", self.options["intra_depth"]), "norm")
            for g, row in enumerate(own):
                logits[g].append(self.linear(row, f"head.{g}"))
        return [torch.stack(rows) for rows in logits]


@pytest.mark.parametrize("options", VARIANTS)
def test_forward_equals_naive_implementation(options):
    model = filled(lambda: FactorizedAR(**options))
    tokens, labels = batch(options)
    naive = Naive(model, options)
    with torch.no_grad():
        logits = model(tokens, labels)
    assert [part.shape for part in logits] == [(*tokens.shape, size) for size in options["factors"]]
    for row, (sequence, label) in enumerate(zip(tokens, labels, strict=True)):
        for part, expected in zip(logits, naive(sequence, label), strict=True):
            assert_close(part[row], expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("options", VARIANTS)
def test_logits_see_earlier_sub_tokens_only(options):
    model, split = filled(lambda: FactorizedAR(**options)), TokenFactors(options["factors"])
    tokens, labels = batch(options)
    count, sizes = options["num_tokens"], options["factors"]
    with torch.no_grad():
        before = model(tokens, labels)
        for g, size in enumerate(sizes):
            digits = split.split(tokens)
            digits[:, 5, g] = (digits[:, 5, g] + 1) % size
            after = model(split.join(digits), labels)
            for h, (old, new) in enumerate(zip(before, after, strict=True)):
                changed = (old != new).any(dim=-1).any(dim=0)
                assert changed.tolist() == [False] * 5 + [h > g] + [True] * (count - 6), (g, h)


def test_places_and_the_class_matter_in_their_own_way():
    """Same weights, other rotary positions: other logits."""
    tokens, labels = batch()
    changes = ({}, {"rope": "1d"}, {"class_rotation": "identity"})
    with torch.no_grad():
        first, *others = (
            filled(lambda change=change: FactorizedAR(**TINY, **change))(tokens, labels)[1]
            for change in changes
        )
    assert all((other - first).abs().max() > 0.01 for other in others)


def test_many_sequences_are_worked_through_in_parts(monkeypatch):
    model = filled(lambda: FactorizedAR(**TINY))
    tokens, labels = batch()
    with torch.no_grad():
        whole = model(tokens, labels)
        monkeypatch.setattr("modeling.generators.factorized_ar._SEQUENCES", 10)
        torch.testing.assert_close(model(tokens, labels), whole, atol=1e-6, rtol=1e-6)


def test_activation_checkpointing_changes_no_gradient():
    tokens, labels = batch()
    gradients = []
    for on in (False, True):
        model = filled(lambda on=on: FactorizedAR(**TINY, activation_checkpointing=on))
        factorized_loss(model(tokens, labels), model.token_factors.split(tokens))[0].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())


def test_training_in_bfloat16_follows_float32():
    model = filled(lambda: FactorizedAR(**TINY))
    tokens, labels = batch()
    with torch.no_grad():
        exact = model(tokens, labels)
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(tokens, labels)
    for part, reference in zip(cast, exact, strict=True):
        assert part.dtype == torch.bfloat16
        assert (part.float() - reference).abs().mean() < 0.02 * reference.std()


def test_initialisation():
    torch.manual_seed(0)
    model = FactorizedAR(**TINY | {"codebook_size": 64 * 128, "factors": [64, 128]})
    tokens, labels = batch()
    loss, _ = factorized_loss(model(tokens, labels), model.token_factors.split(tokens))
    assert loss.item() == pytest.approx(math.log(64) + math.log(128), abs=1e-5)
    for name in (
        "pre_emb",
        "post_emb",
        "spatial_blocks.0.attention.wqkv",
        "factorized_blocks.1.feed_forward.w2",
    ):
        assert model.get_submodule(name).weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(model.norm.weight, torch.ones(64))


def test_dropout_is_on_in_training_mode_only():
    model = filled(lambda: FactorizedAR(**TINY))
    tokens, labels = batch()
    assert {part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)} == {0.1}
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(model(tokens, labels)[1], model(tokens, labels)[1])
        model.train()
        assert not torch.equal(model(tokens, labels)[1], model(tokens, labels)[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 66}, "hidden_size=66 must be a multiple of num_heads=4"),
        ({"num_heads": 0}, "and num_heads=0 must be at least 1"),
        ({"num_tokens": 15}, "num_tokens=15 is not a square grid; expected n [*] n tokens, or rope=1d"),
        ({"factors": [4, 5]}, "factors 4 x 5 make 20 tokens, but the codebook has 24"),
        ({"factors": [24]}, r"factors=\[24\] must be 2 sizes or more"),
        ({"factors": [24, 1]}, "each at least 2"),
        ({"codebook_size": 8, "factors": [2, 2, 2], "num_tokens": 1}, "no more than num_tokens [+] 1 = 2"),
        ({"class_rotation": "one"}, "class_rotation='one' is unknown; choose zero, identity"),
        ({"rope": "3d"}, "rope='3d' is unknown; choose 2d, 1d"),
        ({"intra_depth": 0}, "intra_depth=0 must be at least 1"),
    ],
)
def test_bad_sizes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        FactorizedAR(**(TINY | change))


def test_bad_inputs_are_named():
    model, (tokens, labels) = FactorizedAR(**TINY), batch()
    with pytest.raises(ValueError, match=r"\[3, 15\], expected \[B, 16\]"):
        model(tokens[:, :15], labels)
    with pytest.raises(ValueError, match="expected None: FactorizedAR supports raster order only"):
        model(tokens, labels, torch.arange(16).expand(3, -1))
