"""The CLIP text encoder: numbers of a small tower, weight files, captions, what to do when something is missing."""

import sys

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from modeling.pretrained import downloads
from modeling.pretrained import text as text_module
from modeling.pretrained.text import build_text_tower, class_captions, load_text_encoder
from storage.weights import CheckpointError
from tests.parity import fill_module

open_clip = pytest.importorskip("open_clip")


def tiny_tower(**options) -> torch.nn.Module:
    return build_text_tower(**{"text_length": 9, "hidden_size": 24, "depth": 2, "num_heads": 3, **options})


@pytest.fixture
def tiny(monkeypatch):
    """`load_text_encoder` makes towers of 77 positions with 24 channels."""
    monkeypatch.setattr(text_module, "build_text_tower", lambda **sizes: tiny_tower(text_length=77))


def naive(state: dict[str, torch.Tensor], tokens: torch.Tensor, num_heads: int = 3) -> torch.Tensor:
    """The tower position by position: position i looks at 0..i, nothing later enters the computation."""
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"]
    width = x.shape[-1]

    def norm(name, x):
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"])

    for layer in range(2):
        entry = {k.split(".", 3)[3]: v for k, v in state.items() if f"resblocks.{layer}." in k}
        here = f"transformer.resblocks.{layer}"
        y = norm(f"{here}.ln_1", x)
        q, k, v = (y @ entry["attn.in_proj_weight"].T + entry["attn.in_proj_bias"]).split(width, -1)
        mixed = torch.zeros_like(x)
        for i in range(x.shape[1]):
            for h in range(num_heads):
                part = slice(h * width // num_heads, (h + 1) * width // num_heads)
                scores = (q[:, i : i + 1, part] * k[:, : i + 1, part]).sum(-1) * (width // num_heads) ** -0.5
                mixed[:, i, part] = (scores.softmax(-1)[..., None] * v[:, : i + 1, part]).sum(1)
        x = x + mixed @ entry["attn.out_proj.weight"].T + entry["attn.out_proj.bias"]
        y = norm(f"{here}.ln_2", x) @ entry["mlp.c_fc.weight"].T + entry["mlp.c_fc.bias"]
        y = y * torch.sigmoid(1.702 * y)
        x = x + y @ entry["mlp.c_proj.weight"].T + entry["mlp.c_proj.bias"]
    return norm("ln_final", x)


def test_features_equal_a_naive_tower_at_every_position():
    tower = fill_module(tiny_tower(vocabulary=50))
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    encoder = text_module.TextEncoder(tower=tower, tokenize=lambda captions: tokens)
    features = encoder.encode(["one", "two"])
    torch.testing.assert_close(features, naive(tower.state_dict(), tokens), atol=1e-5, rtol=1e-5)
    assert features.dtype == torch.float32 and (encoder.length, encoder.width) == (9, 24)
    assert not features.requires_grad and not encoder.train().tower.training
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.encode(["one", "two"]), features)


@pytest.mark.parametrize("prefix", ["", "text."])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_only_the_text_half_of_a_weight_file_is_read(tiny, tmp_path, prefix, ending):
    tower = fill_module(tiny_tower(text_length=77))
    state = {prefix + name: tensor.half().contiguous() for name, tensor in tower.state_dict().items()}
    state |= {
        "visual.proj": torch.ones(3),
        f"{prefix}text_projection": torch.ones(4),
        "logit_scale": torch.ones(()),
    }
    path = tmp_path / f"clip.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    encoder = load_text_encoder(path)
    for name, tensor in encoder.tower.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, state[prefix + name].float()), name
    captions = ["A photo of a cat.", "", "many words " * 100]
    features = encoder.encode(captions)
    assert features.shape == (3, 77, 24) and features.isfinite().all()
    torch.testing.assert_close(encoder.encode(captions[:1]), features[:1])
    # Up to "cat." the tokens are those of the longer caption, and position i sees nothing behind it.
    longer = encoder.encode(["A photo of a cat and a dog"])
    torch.testing.assert_close(longer[0, :6], features[0, :6])
    assert not torch.allclose(longer[0, 6:], features[0, 6:])


def test_the_full_tower_has_the_names_and_shapes_of_clip_vit_l_14():
    with torch.device("meta"):
        ours = text_module.build_text_tower()
        theirs = open_clip.CLIP(
            embed_dim=768,
            vision_cfg={"image_size": 336, "layers": 1, "width": 64, "patch_size": 14, "head_width": 64},
            text_cfg={"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12},
            quick_gelu=True,
        )
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    for name, tensor in ours.state_dict().items():
        assert shapes.pop(name) == tensor.shape, name
    assert not [
        n for n in shapes if not n.startswith("visual.") and n not in ("text_projection", "logit_scale")
    ]


def test_files_that_do_not_fit_are_named(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        load_text_encoder(tmp_path / "nowhere.pt")
    state = {n: t.contiguous() for n, t in tiny_tower(text_length=77).state_dict().items()}
    missing = {name: tensor for name, tensor in state.items() if name != "ln_final.bias"}
    save_file(missing, tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match="missing.safetensors lacks the entry 'ln_final.bias'"):
        load_text_encoder(tmp_path / "missing.safetensors")
    save_file(state | {"ln_final.bias": torch.zeros(5)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"'ln_final.bias' has shape \[5\].*\[24\]"):
        load_text_encoder(tmp_path / "other.safetensors")


def test_without_network_or_library_the_error_says_what_to_do(monkeypatch):
    def refuse(*names):
        raise OSError("no route to host")

    monkeypatch.setattr(downloads, "cached_download", refuse)
    with pytest.raises(
        ValueError, match=r"no route.*clip_336.openai/resolve/main/open_clip_model.safetensors.*put"
    ):
        load_text_encoder()
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match="pip install -r requirements-text.txt"):
        load_text_encoder()


def test_class_captions():
    assert class_captions(["goldfish", "tabby cat"]) == ["A photo of a goldfish.", "A photo of a tabby cat."]


def test_numbers_of_a_thousand_classes_stand_for_imagenet():
    assert class_captions(["cat"]) == ["A photo of a cat."]
    assert class_captions([str(i) for i in range(1000)])[207] == "A photo of a golden retriever."
    assert class_captions(["0", "1"])[1] == "A photo of a 1."
    folders = sorted(str(i) for i in range(1000))  # 0, 1, 10, 100, 101, ...
    assert class_captions(folders)[folders.index("207")] == "A photo of a golden retriever."


def test_synsets_stand_for_imagenet_classes():
    assert class_captions(["n02099601", "n99999999"]) == [
        "A photo of a golden retriever.",
        "A photo of a n99999999.",
    ]
