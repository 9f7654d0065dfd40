import pytest
import torch

from modeling.factory import build_generator
from modeling.generators import GPT
from modeling.losses.tokens import autoregressive_loss
from modeling.pretrained.llamagen import SIZES, adapt_llama, adapt_llamagen, llamagen_section
from modeling.pretrained.loading import load_generator
from modeling.sampling.guidance import guide
from tests.modeling.generators.test_gpt import TINY
from tests.parity import assert_close, fill_values, filled, golden, manifest, state_layout

PARAMETERS = {"b": 110.89, "l": 342.91, "xl": 774.70, "xxl": 1410.97, "3b": 3096.66}  # millions, published
PARTS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
PARTS += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
WIDTH, MLP, LAYERS = 64, 176, 3


def llama(vocabulary: int) -> dict[str, torch.Tensor]:
    """The filled state dict of a bare Llama."""
    shapes = {f"model.{name}.weight": (vocabulary, WIDTH) for name in ("embed_tokens",)}
    for layer in range(LAYERS):
        for part in PARTS:
            shape = (WIDTH,) if part.endswith("norm") else (WIDTH, WIDTH)
            shape = {"gate": (MLP, WIDTH), "up": (MLP, WIDTH), "down": (WIDTH, MLP)}.get(part[4:-5], shape)
            shapes[f"model.layers.{layer}.{part}.weight"] = shape
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (vocabulary, WIDTH)}
    return {name: fill_values(name, torch.empty(shape)) for name, shape in shapes.items()}


def llama_gpt(codebook_size: int) -> GPT:
    sizes = {"hidden_size": WIDTH, "depth": LAYERS, "num_heads": 4, "mlp_size": MLP}
    return GPT(codebook_size=codebook_size, num_classes=10, num_tokens=24, rope="1d", **sizes).eval()


@pytest.mark.parametrize("size", SIZES)
def test_sections_have_the_published_sizes(size):
    with torch.device("meta"):
        model = build_generator(llamagen_section(size, 576))
    assert model.num_tokens == 576
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PARAMETERS[size], abs=0.006)


def test_an_unknown_size_is_named():
    with pytest.raises(ValueError, match="size='7b' is unknown; choose b, l, xl, xxl, 3b"):
        llamagen_section("7b")


@pytest.mark.parametrize("wrapped", [False, True])
def test_llamagen_files(wrapped):
    state = filled(lambda: GPT(**TINY)).state_dict()
    file = {"freqs_cis": torch.zeros(17, 8, 2), **state}
    adapted = adapt_llamagen({"model": file, "steps": 3, "optimizer": {}} if wrapped else file)
    assert adapted.keys() == state.keys()
    GPT(**TINY).load_state_dict(adapted)


def test_other_llamagen_files_are_refused():
    state = {
        "tok_embeddings.weight": torch.zeros(1, 1),
        "cls_embedding.cap_proj.fc1.weight": torch.zeros(1, 1),
    }
    with pytest.raises(ValueError, match=r"cap_proj.fc1.weight' shows a text-conditional LlamaGen"):
        adapt_llamagen(state)
    with pytest.raises(ValueError, match="lacks the entry 'tok_embeddings.weight'"):
        adapt_llamagen({"steps": 3})


@pytest.mark.parametrize("prefix", ["", "_transformer._transformer."])
def test_llama_logits_equal_reference(prefix):
    expected = golden("ut_ar_llama_tiny")
    model = llama_gpt(96)
    state = {f"{prefix}{name}": tensor for name, tensor in llama(107).items()}
    model.load_state_dict(adapt_llama(state, num_classes=10, codebook_size=96))
    codes, classes = (torch.from_numpy(expected[key]).long() for key in ("codes", "classes"))
    with torch.no_grad():
        logits = model(codes, classes)
    assert_close(logits, expected["logits"][..., 11:], atol=1e-4)
    assert_close(guide(logits[:2, :24], 1.75), expected["image_logits_cfg_1_75"], atol=1e-4)


def test_llama_loss_over_the_whole_vocabulary_equals_reference():
    """With every id of the reference's vocabulary as a code."""
    expected, state = golden("ut_ar_llama_tiny"), llama(107)
    model = llama_gpt(107)
    shared = {name: state[name] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    # 11 more rows for classes in front: the classes of the vocabulary itself.
    longer = {name: torch.cat([table[:11], table]) for name, table in shared.items()}
    model.load_state_dict(adapt_llama({**state, **longer}, num_classes=10, codebook_size=107))
    ids = torch.from_numpy(expected["token_ids"]).long()
    with torch.no_grad():
        logits = model(ids[:, 1:], ids[:, 0])
    assert_close(logits, expected["logits"], atol=1e-4)
    assert_close(autoregressive_loss(logits, ids[:, 1:])[0], expected["loss"], atol=0, rtol=1e-5)


def test_llama_of_full_size_has_our_layout():
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, (shape, _) in manifest("vq_ar_llama_medium").items()}
        sizes = {"hidden_size": 1024, "depth": 24, "num_heads": 16, "mlp_size": 2816}
        model = GPT(codebook_size=8192, num_classes=1000, num_tokens=256, rope="1d", **sizes)
    adapted = adapt_llama(state, num_classes=1000, codebook_size=8192)
    wanted = {name: shape for name, (shape, _) in state_layout(model).items()}
    assert {name: list(tensor.shape) for name, tensor in adapted.items()} == wanted


def test_a_llama_file_loads_by_its_layout(tmp_path):
    state, section = llama(107), {"name": "gpt", "codebook_size": 96, "num_classes": 10, "num_tokens": 24}
    section |= {"rope": "1d", "hidden_size": WIDTH, "depth": LAYERS, "num_heads": 4, "mlp_size": MLP}
    torch.save(state, tmp_path / "gpt.pth")
    loaded = load_generator(tmp_path / "gpt.pth", config={"generator": section, "format": "llama"})
    assert torch.equal(loaded.tok_embeddings.weight, state["model.embed_tokens.weight"][11:])
    with pytest.raises(ValueError, match=r"gpt.pth: entry 'model.embed_tokens.weight' has 107 rows"):
        config = {"generator": section | {"codebook_size": 95}, "format": "llama"}
        load_generator(tmp_path / "gpt.pth", config=config)


def test_llama_states_that_do_not_fit_are_named():
    state, sizes = llama(107), {"num_classes": 10, "codebook_size": 96}
    with pytest.raises(
        ValueError, match="'model.embed_tokens.weight' has 107 rows, expected 108: 10 classes"
    ):
        adapt_llama(state, num_classes=10, codebook_size=97)
    with pytest.raises(ValueError, match="has the entry 'model.extra', which no bare Llama has"):
        adapt_llama({**state, "model.extra": torch.zeros(1)}, **sizes)
    del state["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match="lacks the entry 'model.layers.1.mlp.up_proj.weight'"):
        adapt_llama(state, **sizes)
