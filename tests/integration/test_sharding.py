"""A sharded model trains like one that is not, and its checkpoints continue on any number of processes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from common.config import REPOSITORY, read_yaml
from jobs.fit_codebook import fit_codebook
from modeling.pretrained.loading import load_generator
from storage.weights import CheckpointError
from tests.conftest import Finished
from tests.integration.several import Run, needs_fork, train_together
from tests.integration.test_debug_twins import TWINS, teacher_weights, train  # noqa: F401, two fixtures
from training.generator_run import train_generator
from training.generator_settings import GeneratorRun
from training.tokenizer_run import train_tokenizer
from training.tokenizer_settings import TokenizerRun

pytestmark = needs_fork

STEPS = 4  # saved after two, too
# As in test_processes: without dropout, and with an epsilon above rounding errors. Every kind of model that is sharded:
# with orders and averages, with long skips, with a discriminator and codes that move to latents, with codes that are
# averages, and all matrices by Muon.
GENERATOR, TOKENIZER = (train_generator, GeneratorRun), (train_tokenizer, TokenizerRun)
FEW = [f"data.{part}.validation_fraction=0.01" for part in ("train", "validation")]
CASES = {
    "rar": (GENERATOR, ["generator.dropout=0", "generator.attention_dropout=0"]),
    "uvit": (GENERATOR, []),
    "maskgit": (GENERATOR, ["generator.dropout=0", "generator.attention_dropout=0"]),
    "gpt": (GENERATOR, ["generator.dropout=0", "generator.activation_checkpointing=true"]),
    "titok": (TOKENIZER, ["losses.discriminator_start=2"]),
    "vqgan": (
        TOKENIZER,
        [
            "losses.adaptive_weight=false",
            "discriminator=null",
            *FEW,
            "tokenizer.quantizer={name: ema_vq, codebook_size: 32, code_dim: 8, revive_below: 0.985}",
        ],
    ),
}
MUON, BF16 = "optimizer.muon_learning_rate=0.02", "training.mixed_precision=bf16"
FULL, HYBRID = "training.sharding=full", "training.sharding=hybrid"


class Bench:
    """Runs of twins in one folder; the global batch is 16."""

    def __init__(self, folder: Path, tokens: Path) -> None:
        self.folder, self.tokens = folder, tokens

    def run(self, twin: str, name: str, count: int, *options: str) -> Run:
        program, own = CASES[twin]
        arguments = [f"config=configs/debug/{twin}.yaml", *own, f"experiment.output_dir={self.folder / name}"]
        arguments += [f"training.max_steps={STEPS}", "training.save_every=2", "training.log_every=1"]
        arguments += ["optimizer.epsilon=1e-3", "schedule.warmup_steps=1"]
        arguments += [f"training.per_gpu_batch_size={16 // count}"]
        if program is GENERATOR:
            arguments.append(f"data.tokens={self.tokens}")
        return *program, [*arguments, *options]

    def halved(self, name: str, copy: str) -> None:
        """Copy a run as it was after two steps."""
        shutil.copytree(self.folder / name, self.folder / copy)
        shutil.rmtree(self.folder / copy / f"checkpoints/step-{STEPS:08d}")
        (self.folder / copy / "model.safetensors").unlink()

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "model.safetensors")

    def losses(self, name: str) -> list[dict]:
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        return [
            {k: v for k, v in json.loads(line).items() if "second" not in k and k != "data_fraction"}
            for line in lines
        ]

    def assert_alike(self, one: str, two: str, weights: float = 2e-5, losses: float = 2e-5) -> None:
        first, second = self.weights(one), self.weights(two)
        assert first.keys() == second.keys()
        for name in first:
            difference = (first[name] - second[name]).abs().max()
            assert difference <= weights, f"{name} differs by {difference:.1e}"
        first, second = self.losses(one), self.losses(two)
        assert [r["step"] for r in first] == [r["step"] for r in second]
        for a, b in zip(first, second, strict=True):
            if a.pop("kind") == b.pop("kind") == "train":
                assert b == pytest.approx(a, rel=1e-3 if losses else 0, abs=losses), a["step"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_token_file: Path) -> Bench:
    """All runs of this module: a group of processes is joined once for each number of them."""
    bench = Bench(tmp_path_factory.mktemp("runs"), tiny_token_file)
    run = bench.run
    train_together(4, [run("rar", "rar-4", 4, FULL), run("uvit", "uvit-hybrid", 4, HYBRID)], per_node=2)
    for copy in ("rar-4-on-2", "rar-4-on-1", "rar-4-ddp"):
        bench.halved("rar-4", copy)
    two = [run("rar", "rar-4-on-2", 2, FULL), run("rar", "rar-4-ddp", 2)]
    two += [run("titok", "titok-2", 2, FULL), run("vqgan", "vqgan-2", 2, FULL)]
    two += [run("maskgit", "muon-ddp", 2, MUON), run("maskgit", "muon-2", 2, MUON, FULL)]
    halves = [BF16, "training.gradient_accumulation_steps=2", "training.per_gpu_batch_size=4"]
    two += [run("gpt", "gpt-ddp", 2, *halves), run("gpt", "gpt-2", 2, *halves, FULL)]
    train_together(2, two)
    resumed = [f"{case}-on-2" for case in ("muon-ddp", "muon-2")]
    for name in resumed:
        bench.halved(name.removesuffix("-on-2"), name)
    train_together(2, [run("maskgit", name, 2, MUON, FULL) for name in resumed])
    one = [run(twin, f"{twin}-1", 1) for twin in ("rar", "uvit", "titok", "vqgan")]
    train_together(1, [*one, run("rar", "rar-4-on-1", 1, FULL)])
    return bench


@pytest.mark.parametrize("case", ["rar-4", "uvit-hybrid", "titok-2", "vqgan-2"])
def test_shards_train_like_the_whole(bench, case):
    bench.assert_alike(f"{case.split('-')[0]}-1", case)


@pytest.mark.parametrize("case", ["rar-4-on-2", "rar-4-on-1", "rar-4-ddp"])
def test_shards_of_four_processes_go_on(bench, case):
    bench.assert_alike("rar-1", case)


@pytest.mark.parametrize("case", ["muon-2", "muon-2-on-2", "muon-ddp-on-2"])
def test_the_same_processes_give_the_same_bits(bench, case):
    """Sharded or data-parallel, stopped or not; Muon sees whole matrices, or it would amplify every difference."""
    bench.assert_alike("muon-ddp", case, weights=0, losses=0)


def test_bfloat16(bench):
    """Of blocks, weights that autocast leaves alone (norms) are rounded too when they are gathered."""
    bench.assert_alike("gpt-ddp", "gpt-2", weights=5e-3, losses=2e-2)


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_every_process_writes_its_part(bench):
    checkpoint = bench.folder / "rar-4/checkpoints/step-00000002"
    shards = {"model.shards", "ema.shards", "model.optimizer.shards"}
    assert files(checkpoint) == shards | {"optimizers.pt", "state.json", "config.yaml"}
    for name in shards:
        parts = list((checkpoint / name).iterdir())
        assert len(parts) == 4 and all(part.suffix == ".safetensors" for part in parts)
        sizes = [sum(t.numel() for t in load_file(part).values()) for part in parts]
        assert max(sizes) < 0.35 * sum(sizes)
    # What is not sharded is stored as ever.
    checkpoint = bench.folder / "titok-2/checkpoints/step-00000004"
    whole = {f"{name}.safetensors" for name in ("discriminator", "lecam", "codebook_health")}
    assert files(checkpoint) == shards | whole | {"optimizers.pt", "state.json", "config.yaml"}
    assert not list(bench.folder.rglob("*.part")) and not list(bench.folder.rglob(".metadata"))


def test_shards_are_a_model_that_can_be_loaded(bench):
    run = bench.folder / "rar-4"
    result = bench.weights("rar-4")
    checkpoint = run / "checkpoints/step-00000004"
    averaged = load_generator(checkpoint).state_dict()  # averaged weights are preferred, as ever
    assert averaged.keys() == result.keys() and all(torch.equal(averaged[n], result[n]) for n in result)
    raw = load_generator(checkpoint / "model.shards").state_dict()
    assert any(not torch.equal(raw[n], result[n]) for n in result)


def test_a_lost_part_is_noticed(bench, tmp_path):
    broken = tmp_path / "step-00000004"
    shutil.copytree(bench.folder / "rar-4/checkpoints/step-00000004", broken)
    for part in list((broken / "ema.shards").iterdir())[1:2]:
        part.unlink()
    with pytest.raises(CheckpointError, match=r"ema\.shards is damaged .* a file is missing"):
        load_generator(broken)


@pytest.fixture
def program() -> Callable:
    """Stands for the fixture that runs programs: notes trainings in `runs`."""

    def note(main: Callable | ModuleType, settings: type, *arguments: str) -> Finished:
        if main is fit_codebook:
            train_together(1, [(main, settings, arguments)])
        else:
            note.runs.append((getattr(main, "main", main), settings, arguments))
        return Finished(0, "", "")

    note.runs = []
    return note


@pytest.mark.slow
def test_every_twin_trains_sharded_as_data_parallel(train, program, tmp_path):  # noqa: F811
    pairs = {}
    for twin in TWINS:
        options = ["training.max_steps=3", "schedule.warmup_steps=1", "training.per_gpu_batch_size=4"]
        options.append("training.max_grad_norm=null")  # the norm of shards is rounded in another place
        tree = read_yaml(REPOSITORY / "configs" / "debug" / f"{twin}.yaml")
        if tree.get("discriminator"):
            options.append("losses.discriminator_start=1")
        if tree.get("losses", {}).get("adaptive_weight"):
            options.append("losses.adaptive_weight=false")
        pairs[twin] = train(twin, f"{twin}-ddp", *options), train(twin, f"{twin}-full", *options, FULL)
    train_together(2, program.runs)
    for twin, (ddp, full) in pairs.items():
        assert (full / "checkpoints/step-00000003/model.shards").is_dir(), twin
        first, second = load_file(ddp / "model.safetensors"), load_file(full / "model.safetensors")
        for name in first:
            difference = (first[name].float() - second[name].float()).abs().max()
            assert difference < 1e-7, f"{twin}: {name} differs by {difference:.1e}"  # almost all: 0
