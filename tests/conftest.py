"""Tiny models with deterministic random weights, as run folders; entry points run inside the test process."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import save_file

from common import cores
from common.config import run_script
from data.token_memmap import TokenHeader, TokenWriter
from modeling.factory import build_generator, build_tokenizer
from modeling.pretrained.text import build_text_tower
from storage.files import write_yaml
from storage.weights import weight_hash
from tests.parity import fill_module

TOKENIZER = {
    "name": "titok",
    "image_size": 16,
    "num_latent_tokens": 6,
    "encoder_patch_size": 4,
    "encoder_hidden_size": 32,
    "encoder_depth": 1,
    "encoder_num_heads": 2,
    "decoder_patch_size": 4,
    "decoder_hidden_size": 32,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
    "quantizer": {"name": "vq", "codebook_size": 48, "code_dim": 8},
}
GENERATOR = {
    "name": "rar",
    "codebook_size": 48,
    "num_tokens": 6,
    "num_classes": 3,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_size": 64,
}
CLASS_NAMES = ["cat", "dog", "Food & Drink"]


def write_run(folder: Path, config: dict, module: torch.nn.Module) -> Path:
    """A finished run folder of `module`."""
    folder.mkdir(parents=True)
    write_yaml(folder / "config.yaml", config)
    save_file(module.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a TiTok: 16 x 16 pixels, 6 tokens of 48 codes."""
    config = {
        "tokenizer": TOKENIZER,
        "data": {
            "train": {"name": "openmoji", "image_size": 16, "random_flip": True},
            "validation": {"name": "openmoji", "image_size": 16, "split": "validation"},
        },
    }
    return write_run(
        tmp_path_factory.mktemp("tokenizer") / "run", config, fill_module(build_tokenizer(TOKENIZER))
    )


@pytest.fixture(scope="session")
def tiny_generator_run(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_run: Path) -> Path:
    """Run folder of a RAR with 3 classes on the tokens of `tiny_tokenizer_run`."""
    origin = {
        "tokenizer": str(tiny_tokenizer_run),
        "weight_hash": weight_hash(fill_module(build_tokenizer(TOKENIZER))),
        "class_names": CLASS_NAMES,
        "image_size": 16,
    }
    sampling = {"guidance_scale": 3.0, "guidance_power": 1.0, "temperature": 1.0}
    config = {"generator": GENERATOR, "tokens": origin, "sampling": sampling}
    return write_run(
        tmp_path_factory.mktemp("generator") / "run", config, fill_module(build_generator(GENERATOR))
    )


@pytest.fixture(scope="session")
def tiny_text_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a CLIP text tower of width 16 and depth 1."""
    pytest.importorskip("open_clip")
    path = tmp_path_factory.mktemp("clip") / "text.safetensors"
    save_file(fill_module(build_text_tower(hidden_size=16, depth=1, num_heads=1)).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven noise images of different sizes in two class folders."""
    root, draws = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(7):
        folder = root / ("blue" if i % 3 else "apple")
        folder.mkdir(exist_ok=True)
        pixels = draws.integers(0, 256, (16 + i, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def tiny_token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images of 6 random tokens of 48 codes in 3 classes; every class prefers codes of its own."""
    path = tmp_path_factory.mktemp("tokens") / "train.tokens"
    header = TokenHeader(
        num_images=300,
        crops=1,
        num_tokens=6,
        codebook_size=48,
        tokenizer="nobody",
        weight_hash="0" * 16,
        image_size=16,
        class_names=CLASS_NAMES,
    )
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    tokens = rng.integers(0, 16, (300, 1, 6)) + 16 * labels[:, None, None]
    TokenWriter.create(path, header)
    writer = TokenWriter(path)
    writer.write(np.arange(300), tokens, labels)
    writer.close()
    TokenWriter.finish(path)
    return path


@pytest.fixture
def engine() -> Iterator[None]:
    """For tests that train inside the test process: undoes what a training sets for its whole process."""
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    flash, benchmark = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cudnn.benchmark

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    forget()
    yield
    forget()
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(False)


class Finished(NamedTuple):
    """How a program ended and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def program(engine: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable:
    """`program(main, SettingsClass, *arguments)` runs a job, or an entry module, as the command line would."""

    def call(main: Callable | ModuleType, settings: type, *arguments: str) -> Finished:
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        capsys.readouterr()
        code = 0
        try:
            run_script(getattr(main, "main", main), settings, main.__doc__)
        except SystemExit as end:
            code = end.code
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        out, err = capsys.readouterr()
        # What the interpreter does with a text given to sys.exit.
        return Finished(1, out, f"{err}{code}\n") if isinstance(code, str) else Finished(code or 0, out, err)

    return call


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """`container({file: text})` stands in for the kernel's files of a container; `__` in a name is a folder."""
    monkeypatch.setattr(cores, "CGROUP", tmp_path)

    def write(texts: dict[str, str]) -> None:
        for name, text in texts.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    return write
