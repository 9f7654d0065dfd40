"""Comparing tokenizers: the rows, what is repeated and what is not, recipes in stages, the table."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train_rar
import train_titok
from common.config import REPOSITORY, read_yaml
from data.token_memmap import TokenMemmap
from evaluator.codebook_usage import CodebookUsage
from evaluator.networks import comparing_metrics, local_networks
from jobs.compare_tokenizers import compare_tokenizers, images_of
from jobs.comparison_table import markdown_table
from jobs.options.compare_tokenizers import CompareOptions
from jobs.recipe_runs import launch
from modeling.pipeline import load_tokenizer
from storage.files import write_yaml
from tests.evaluator.toy import ToyInception
from training.generator_settings import GeneratorRun
from training.tokenizer_settings import ImageData, TokenizerRun

SMALL = {"name": "openmoji", "skin_tones": False, "categories": ["Flags", "Objects", "Symbols"]}
DATA = ImageData(train={**SMALL, "split": "validation"}, validation={**SMALL, "split": "validation"})


@pytest.fixture
def launched(monkeypatch, program):
    """Trainings run inside the test process; the list of what was started."""
    calls = []

    def call(name, arguments):
        module, settings = {
            "train_titok.py": (train_titok, TokenizerRun),
            "train_rar.py": (train_rar, GeneratorRun),
        }[name]
        calls.append((name, arguments))
        done = program(module, settings, *arguments)
        assert done.code == 0, done.err

    monkeypatch.setattr("jobs.recipe_runs.launch", call)
    monkeypatch.delenv("INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nowhere")
    return calls


@pytest.fixture
def options(tmp_path):
    """Two steps of a GPT that has hardly any weights."""
    tree = read_yaml("configs/compare/gpt.yaml")
    tree["generator"] |= {"hidden_size": 16, "depth": 1, "mlp_size": 16}
    tree["schedule"]["warmup_steps"] = 1
    write_yaml(tmp_path / "gpt.yaml", tree)
    common = {"gpt": str(tmp_path / "gpt.yaml"), "gpt_steps": 2, "num_samples": 3, "data": DATA}
    return lambda **changes: CompareOptions(output=str(tmp_path / "out"), **common | changes)


def rows(options):
    compare_tokenizers(options)
    return json.loads((options.folder / "comparison.json").read_text())["rows"]


def raises(error):
    def call(*_, **__):
        raise error

    return call


def test_a_row_agrees_with_the_token_file_and_is_not_made_twice(
    options, tiny_tokenizer_run, launched, monkeypatch, tmp_path
):
    chosen = options(tokenizers=[str(tiny_tokenizer_run)])
    (row,) = rows(chosen)
    tokens = TokenMemmap(path=chosen.folder / "tokens" / "run.validation.tokens")
    usage, draws = CodebookUsage(48), np.random.default_rng(0)
    usage.update(torch.stack([tokens.load(i, draws)[0] for i in range(len(tokens))]))
    assert row["codebook_perplexity"] == pytest.approx(usage.result()["codebook_perplexity"])
    loss = json.loads((chosen.folder / "gpt" / "run" / "metrics.json").read_text())["loss"]
    assert row["gpt_nats_per_token"] == loss
    assert row["gpt_bits_per_image"] == pytest.approx(6 * loss / 0.693147, rel=1e-4)
    assert (row["tokens"], row["codebook_size"], row["held_out_images"]) == (6, 48, len(tokens))
    assert (chosen.folder / "samples" / "run" / "samples.png").is_file()
    assert (chosen.folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert [name for name, _ in launched] == ["train_rar.py"]
    assert rows(chosen) == [row] and len(launched) == 1
    with pytest.raises(ValueError, match=r"settings.gpt_steps was 2, is now 3\); choose another output"):
        rows(replace(chosen, gpt_steps=3))
    # A comparison that is stopped keeps the rows that it has, and gets the others when it is started again.
    (tmp_path / "two").symlink_to(tiny_tokenizer_run)
    more = replace(chosen, tokenizers=[str(tmp_path / "two"), *chosen.tokenizers])
    with monkeypatch.context() as patch, pytest.raises(OSError, match="stopped"):
        patch.setattr("jobs.compare_tokenizers.run_recipe", raises(OSError("stopped")))
        rows(more)
    assert json.loads((chosen.folder / "comparison.json").read_text())["rows"] == [row]
    assert [found["name"] for found in rows(more)] == ["two", "run"] and len(launched) == 2


def tiny(tmp_path, name):
    """A recipe of configs/compare at the least expense."""
    tree = read_yaml(f"configs/compare/{name}.yaml")
    tree["training"] |= {"per_gpu_batch_size": 32, "max_steps": 2}
    tree["schedule"]["warmup_steps"] = 1
    for split in ("train", "validation"):
        tree["data"][split] |= {"split": "validation", "categories": ["Flags"]}
    tree["tokenizer"]["quantizer"]["codebook_size"] = 32
    write_yaml(tmp_path / f"{name}.yaml", tree)
    return str(tmp_path / f"{name}.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("names", [["vqkd", "vqkd_pixels"], ["cluster_pixels"]], ids=lambda n: n[-1])
def test_stages_build_on_each_other(options, tmp_path, launched, names):
    pytest.importorskip("timm")
    chosen = options(train=[tiny(tmp_path, name) for name in names], fit_iterations=1, teacher_steps=2)
    (row,) = rows(chosen)
    assert row["name"] == names[-1] and row["teacher"].startswith("test_vit.r160_in1k, trained here (")
    assert f"| {names[-1]} * | 16 × 5.0 | - |" in (chosen.folder / "comparison.md").read_text()
    first = load_tokenizer(chosen.run_folder(names[0] if len(names) > 1 else "cluster"))
    last = load_tokenizer(chosen.run_folder(names[-1]))
    assert last.predicts_pixels and not first.predicts_pixels
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first.encode(images), last.encode(images))  # the second stage freezes the codes
    count = len(launched)
    assert rows(chosen) == [row] and len(launched) == count


def test_table():
    row = {"name": "a", "tokens": 16, "codebook_size": 256, "bits_per_image": 128.0, "psnr": 17.126}
    row |= {
        "rfid_397": 12.345,
        "codebook_usage": 0.914,
        "gpt_nats_per_token": 4.321,
        "gpt_bits_per_image": 99.7,
    }
    continuous = {"name": "b", "tokens": 4, "codebook_size": None, "bits_per_image": None, "psnr": 20.0}
    lines = markdown_table([row, continuous]).splitlines()
    assert lines[2] == "| a | 16 × 8.0 | 12.35 | 17.13 | - | - | 91% | - | 4.32 | 100 | - |"
    assert lines[3] == "| b | 4 × - | - | 20.00 | - | - | - | - | - | - | - |"
    assert len({line.count("|") for line in lines}) == 1


def test_mistakes_are_named(options):
    with pytest.raises(ValueError, match="name vqgan twice"):
        options(train=["a/vqgan.yaml", "b/vqgan.yaml"])
    with pytest.raises(ValueError, match="gpt_steps=0 must be at least 1"):
        options(gpt_steps=0)
    with pytest.raises(FileNotFoundError, match="recipe absent.yaml"):
        rows(options(train=["absent.yaml"]))
    small = {path.stem for path in (REPOSITORY / "configs/compare").glob("[!_]*.yaml")} - {"gpt"}
    assert {Path(recipe).stem for recipe in options().train} == small and options(
        tokenizers=["x"]
    ).train == []


def test_a_program_that_fails_is_named():
    with pytest.raises(ValueError, match="absent.py x=1 ended with code 2"):
        launch("absent.py", ["x=1"])


def test_distances_are_there_with_a_network(options, tiny_tokenizer_run, launched, monkeypatch):
    networks = {"inception": ToyInception()}
    monkeypatch.setattr("jobs.compare_tokenizers.local_networks", lambda *arguments: networks)
    chosen = options(tokenizers=[str(tiny_tokenizer_run)], num_samples=30)
    (row,) = rows(chosen)
    stream = images_of(DATA.validation, load_tokenizer(tiny_tokenizer_run))
    images = torch.stack(list(stream.images(range(stream.count))))
    drawn = torch.from_numpy(np.load(chosen.folder / "samples" / "run" / "samples.npz")["arr_0"]).movedim(
        3, 1
    )
    distance = fid_of(ToyInception()(images).pool, ToyInception()(drawn).pool)
    assert row["gfid_30"] == pytest.approx(distance, rel=1e-4)
    assert row[f"rfid_{stream.count}"] > 0


def fid_of(one, other):
    """Frechet distance of features [N, C] and [M, C], by the eigenvalues of the product of covariances."""
    (a, b), (p, q) = (
        (x.double().numpy().mean(0) for x in (one, other)),
        (np.cov(x.double().numpy().T) for x in (one, other)),
    )
    roots = np.sqrt(np.linalg.eigvals(p @ q).astype(complex)).real.sum()
    return float(((a - b) ** 2).sum() + np.trace(p) + np.trace(q) - 2 * roots)


def test_nothing_is_downloaded(monkeypatch, tmp_path):
    monkeypatch.delenv("INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    networks = local_networks(None, None, torch.device("cpu"))
    assert networks == {} and comparing_metrics(networks) == ["psnr", "ssim"]
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        local_networks("absent.pth", None, torch.device("cpu"))
