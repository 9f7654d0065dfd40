"""Files of the original release, as a user of it has them: training, sampling and loading in small."""

import json
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample_imagenet
import train_rar
import train_titok
from common.config import read_yaml
from compat.models import generator_section, tokenizer_section
from modeling.factory import build_generator, build_tokenizer
from modeling.pipeline import load_generator, load_tokenizer
from storage.files import write_yaml
from tests.compat import trees as original_trees
from tests.compat.originals import generator_keys, titok_tree
from tests.parity import fill_module
from training.generator_settings import GeneratorRun
from training.tokenizer_settings import TokenizerRun

# What a user changes to try a recipe on a laptop, in the original's words. The files say fp16, which CPUs have too.
SMALL = [
    "training.per_gpu_batch_size=2",
    "training.max_train_steps=2",
    "lr_scheduler.params.warmup_steps=1",
    "training.enable_wandb=false",
    "dataset.params.num_workers_per_gpu=0",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shard, tokens as JSON lines, the VQGAN's weights, and configurations."""
    root = tmp_path_factory.mktemp("original")
    rng = np.random.default_rng(0)
    with tarfile.open(root / "shard-0000.tar", "w") as tar:
        for i in range(6):
            picture = BytesIO()
            Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(picture, "jpeg")
            for ending, content in ((".jpg", picture.getvalue()), (".cls", b"%d" % (i % 3))):
                member = tarfile.TarInfo(f"{i:08d}{ending}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    lines = [{"class_id": i % 5, "tokens": rng.integers(0, 1024, 256).tolist()} for i in range(8)]
    (root / "maskgitvq.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    vqgan = fill_module(build_tokenizer({"name": "maskgit_vqgan"}))
    torch.save(vqgan.state_dict(), root / original_trees.VQGAN)
    return root


def logged(run: Path) -> list[dict]:
    """Records of training steps."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == "train"]


def run(program: Callable, module, settings, config: Path, *options: str):
    done = program(module, settings, f"config={config}", *options)
    assert done.code == 0, done.err
    return done


def test_first_stage_trains_from_the_original_file(files, tmp_path, program):
    tree = original_trees.shared("stage1", steps=100, warmup=10, rate=1e-4, beta2=0.99, decay=1e-4)
    tree["model"] = {"vq_model": original_trees.legacy_model("small", 16, False)}
    tree["model"]["vq_model"]["pretrained_tokenizer_weight"] = str(files / original_trees.VQGAN)
    tree["losses"] = {"quantizer_weight": 1.0}
    write_yaml(tmp_path / "titok_s16_stage1.yaml", tree)
    run(
        program,
        train_titok,
        TokenizerRun,
        tmp_path / "titok_s16_stage1.yaml",
        *SMALL,
        f"experiment.output_dir={tmp_path / 'stage1'}",
        "dataset.preprocessing.crop_size=32",
        "dataset.preprocessing.resize_shorter_edge=32",
        f"dataset.params.train_shards_path_or_url={files / 'shard-0000.tar'}",
        f"dataset.params.eval_shards_path_or_url={files / 'shard-0000.tar'}",
    )
    tokenizer = load_tokenizer(tmp_path / "stage1")
    assert tokenizer.learns == "codes" and tokenizer.num_tokens == 16
    assert read_yaml(tmp_path / "stage1" / "config.yaml")["training"]["mixed_precision"] == "fp16"
    assert all(record["loss_scale/model"] > 1 for record in logged(tmp_path / "stage1"))


def test_rar_trains_and_samples_from_the_original_file(files, tmp_path, program):
    tree = original_trees.shared("rar", steps=100, warmup=10, rate=4e-4, beta2=0.96, decay=0.03)
    shape = (32, 1, 64)
    tree["model"] = {
        "vq_model": {
            "codebook_size": 1024,
            "token_size": 256,
            "num_latent_tokens": 256,
            "finetune_decoder": False,
            "pretrained_tokenizer_weight": str(files / original_trees.VQGAN),
        },
        "generator": generator_keys(
            None,
            shape,
            randomize_temperature=1.0,
            guidance_scale=16.0,
            guidance_scale_pow=2.75,
            use_checkpoint=False,
            randomness_anneal_start=1,
            randomness_anneal_end=2,
        ),
    }
    tree["dataset"]["params"]["pretokenization"] = str(files / "maskgitvq.jsonl")
    write_yaml(tmp_path / "rar.yaml", tree)
    run(
        program,
        train_rar,
        GeneratorRun,
        tmp_path / "rar.yaml",
        *SMALL,
        f"experiment.output_dir={tmp_path}/run",
        "training.max_train_steps=6",
        "training.per_gpu_batch_size=4",
        "optimizer.params.learning_rate=0.01",
        "data.tokenizer=null",  # no previews: 96 images of 256 pixels take a minute
    )
    trained = load_generator(tmp_path / "run")
    first, *_, last = logged(tmp_path / "run")
    assert last["loss_scale/model"] > 1 and last["total_loss"] < first["total_loss"]
    torch.save(trained.state_dict(), tmp_path / "rar_b.bin")
    run(
        program,
        sample_imagenet,
        sample_imagenet.SampleOptions,
        tmp_path / "rar.yaml",
        f"experiment.generator_checkpoint={tmp_path / 'rar_b.bin'}",
        f"experiment.output_dir={tmp_path / 'samples'}",
        "model.generator.guidance_scale=4.0",
        "num_samples=2",
        "png=false",
    )
    facts = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert facts["guidance_scale"] == 4.0 and facts["guidance_power"] == 2.75
    with np.load(tmp_path / "samples" / "samples.npz") as samples:
        assert samples["arr_0"].shape == (2, 256, 256, 3)


def test_masked_generator_samples_from_the_original_file(files, tmp_path, program):
    tree = titok_tree("s", 8, "vq4k", "tokenizer_titok_small.bin", crop_size=256)
    tree["experiment"]["generator_checkpoint"] = "generator_titok_small.bin"
    tree["model"]["generator"] = generator_keys(
        "ViT",
        (32, 2, 64),
        num_steps=3,
        randomize_temperature=9.5,
        guidance_scale=4.5,
        guidance_decay="linear",
    )
    tokenizer = fill_module(build_tokenizer(tokenizer_section(tree)))
    torch.save(tokenizer.state_dict(), tmp_path / "tokenizer_titok_small.bin")
    generator = fill_module(build_generator(generator_section(tree)))
    torch.save(generator.state_dict(), tmp_path / "generator_titok_small.bin")
    write_yaml(tmp_path / "titok_small.yaml", tree)
    run(
        program,
        sample_imagenet,
        sample_imagenet.SampleOptions,
        tmp_path / "titok_small.yaml",
        f"experiment.tokenizer_checkpoint={tmp_path / 'tokenizer_titok_small.bin'}",
        f"experiment.generator_checkpoint={tmp_path / 'generator_titok_small.bin'}",
        f"experiment.output_dir={tmp_path / 'samples'}",
        "num_samples=2",
    )
    facts = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert facts["num_steps"] == 3 and facts["guidance_schedule"] == "linear" and facts["softmax_annealing"]
    # The file itself is a reference too, on every command line that asks for a model.
    assert load_tokenizer(tmp_path / "titok_small.yaml").num_tokens == 8
    assert load_generator(tmp_path / "titok_small.yaml").num_tokens == 8
