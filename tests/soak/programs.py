"""The programs that are killed, each in a small form, and what of their output has to be the same in the end."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import train_rar
import train_titok
from data.token_memmap import TokenHeader, TokenWriter
from evaluator import networks
from jobs.evaluate import evaluate
from jobs.fit_codebook import fit_codebook
from jobs.options.evaluate import EvaluateOptions
from jobs.options.fit_codebook import FitOptions
from jobs.options.pretokenize import PretokenizeOptions
from jobs.options.sample_images import SampleOptions
from jobs.pretokenize import pretokenize
from jobs.sampling import sample_images
from modeling.factory import build_generator, build_tokenizer
from modeling.pretrained.teachers import build_teacher
from storage.weights import weight_hash
from tests.conftest import CLASS_NAMES, GENERATOR, TOKENIZER, write_run
from tests.evaluator.toy import ToyInception
from tests.parity import fill_module
from training import trainer
from training.generator_settings import GeneratorRun
from training.tokenizer_settings import TokenizerRun


@dataclasses.dataclass(frozen=True)
class Program:
    """A program, its settings class and arguments; `{output}` in them is where it writes."""

    main: Callable
    settings: type
    arguments: list[str]


def prepare(inputs: Path) -> None:
    """Make what the programs read, once."""
    if (inputs / "complete").exists():
        return
    inputs.mkdir(parents=True, exist_ok=True)
    tokenizer, generator = fill_module(build_tokenizer(TOKENIZER)), fill_module(build_generator(GENERATOR))
    data = {"train": {"name": "openmoji", "image_size": 16, "random_flip": True}}
    write_run(inputs / "tokenizer", {"tokenizer": TOKENIZER, "data": data}, tokenizer)
    origin = {"tokenizer": str(inputs / "tokenizer"), "weight_hash": weight_hash(tokenizer)}
    origin |= {"class_names": CLASS_NAMES, "image_size": 16}
    sampling = {"guidance_scale": 3.0, "guidance_power": 1.0, "temperature": 1.0}
    write_run(
        inputs / "generator", {"generator": GENERATOR, "tokens": origin, "sampling": sampling}, generator
    )
    teacher = build_teacher(name="test_vit.r160_in1k", project=True)
    save_file(fill_module(teacher.network).state_dict(), inputs / "teacher.safetensors")
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
    TokenWriter.create(inputs / "train.tokens", header)
    writer, draws = TokenWriter(inputs / "train.tokens"), np.random.default_rng(0)
    writer.write(np.arange(300), draws.integers(0, 48, (300, 1, 6)), np.arange(300) % 3)
    writer.close()
    TokenWriter.finish(inputs / "train.tokens")
    (inputs / "images").mkdir(exist_ok=True)
    for i in range(400):
        Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(inputs / f"images/{i}.png")
    (inputs / "complete").touch()


def programs(inputs: Path) -> dict[str, Program]:
    """All programs by name. Trainings save every second step, so that many signals meet a checkpoint being written."""
    run = [
        "training.max_steps=12",
        "training.save_every=2",
        "training.keep_checkpoints=2",
        "training.log_every=4",
    ]
    run += ["training.evaluate_every=5", "training.preview_every=7", "training.num_workers=2"]
    run += ["experiment.output_dir={output}"]
    # Weights of the real network are no part of the repository.
    toy = dataclasses.replace(networks.NETWORKS["inception"], load=lambda *_, **__: ToyInception(), find=None)
    networks.NETWORKS["inception"] = toy
    trainer.draw_curves = lambda *_: True  # half the time of so short a run
    teacher = f"teacher.weights={inputs}/teacher.safetensors"
    return {
        "tokenizer": Program(
            train_titok.main,
            TokenizerRun,
            [
                "config=configs/debug/titok.yaml",
                *run,
                "training.per_gpu_batch_size=8",
                "evaluation.metrics=[psnr]",
            ],
        ),
        "generator": Program(
            train_rar.main,
            GeneratorRun,
            ["config=configs/debug/rar.yaml", f"data.tokens={inputs}/train.tokens", *run],
        ),
        "tokenizing": Program(
            pretokenize,
            PretokenizeOptions,
            [f"tokenizer={inputs}/tokenizer", "output={output}/x.tokens", "num_workers=2", "batch_size=8"],
        ),
        "fit_codebook": Program(
            fit_codebook,
            FitOptions,
            ["config=configs/debug/cluster.yaml", teacher, "output={output}", "num_workers=2", "images=60"],
        ),
        "make_ref": Program(
            evaluate,
            EvaluateOptions,
            [f"samples={inputs}/images", "make_ref={output}/ref.npz", "metrics=[fid]", "keep_images=400"],
        ),
        "sampling": Program(
            sample_images,
            SampleOptions,
            [f"generator={inputs}/generator", "output={output}", "num_samples=200", "batch_size=10"],
        ),
    }


def content(output: Path) -> dict[str, object]:
    """All that a program has written, by file; left out is what describes the machine, or how often it was stopped."""
    found: dict[str, object] = {}
    checkpoints = sorted(output.glob("checkpoints/step-*"))
    for path in sorted(p for p in output.rglob("*") if p.is_file()):
        if path.suffix == ".part":  # what a process that was killed had begun to write
            continue
        if any(folder in path.parents for folder in checkpoints[:-1]):  # of the step at which it was stopped
            continue
        name = str(path.relative_to(output))
        if path.name == "metrics.jsonl":
            records = map(json.loads, path.read_text().splitlines())
            # A line of training is the mean of the steps since the last one, or since the program was started.
            found[name] = [r if r["kind"] == "evaluate" else (r["step"], r["kind"]) for r in records]
        elif path.name == "samples.json":  # says how long a sample took
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if "seconds" not in k}
        elif path.suffix == ".pt":  # the order of its keys may be another one
            found[name] = dict(sorted(_flat(torch.load(path, weights_only=True))))
        else:
            found[name] = path.read_bytes()
    return found


def _flat(tree: object, name: str = "") -> Iterator[tuple[str, object]]:
    if torch.is_tensor(tree):
        yield name, (tree.dtype, tree.tolist())
    elif isinstance(tree, (dict, list, tuple)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _flat(value, f"{name}/{key}")
    else:
        yield name, tree
