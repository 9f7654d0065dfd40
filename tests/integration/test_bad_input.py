"""Mistakes end in one line that says what to do, before long work where that can be known, and lose no checkpoint."""

import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sample_imagenet
import train_rar
import train_titok
from common.config import REPOSITORY, read_yaml
from jobs.options.pretokenize import PretokenizeOptions
from jobs.options.reconstruct import ReconstructOptions
from jobs.pretokenize import pretokenize
from jobs.reconstruct import reconstruct
from storage.files import write_yaml

SCRIPTS = {
    "train_titok": (train_titok, train_titok.TokenizerRun),
    "train_rar": (train_rar, train_rar.GeneratorRun),
    "sample_imagenet": (sample_imagenet, sample_imagenet.SampleOptions),
    "pretokenize": (pretokenize, PretokenizeOptions),
    "reconstruct": (reconstruct, ReconstructOptions),
}
TITOK, RAR = "config=configs/debug/titok.yaml", "config=configs/debug/rar.yaml"


@pytest.fixture
def refused(program):
    """`refused(script, *arguments)` checks that a script refuses its input properly, and gives the line it says."""

    def call(script: str, *arguments: object, early: bool = True) -> str:
        done = program(*SCRIPTS[script], *map(str, arguments))
        said = [line for line in done.err.splitlines() if not line.startswith("warning: ")]
        assert done.code == 1, done
        assert len(said) == 1 and said[0].startswith("error: ") and len(said[0]) < 600, done.err
        assert "Traceback" not in done.err
        assert not early or "step " not in done.out, "it began to work"
        return said[0]

    return call


@pytest.fixture
def titok(image_folder, tmp_path):
    """Arguments of a tokenizer run of 6 steps on `image_folder` into `tmp_path/run`."""
    tree = read_yaml(REPOSITORY / "configs/debug/titok.yaml")
    images = {"name": "image_folder", "path": str(image_folder), "image_size": 16}
    tree |= {"data": {"train": images, "validation": images}}
    tree["training"] |= {"max_steps": 6, "per_gpu_batch_size": 4, "save_every": 2, "log_every": 2}
    write_yaml(tmp_path / "titok.yaml", tree)
    return [f"config={tmp_path}/titok.yaml", f"experiment.output_dir={tmp_path}/run"]


@pytest.fixture
def no_curves(monkeypatch):
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("training.trainer.draw_curves", lambda folders, output: False)


def images_at(titok: list[str], path: Path, name: str = "image_folder") -> list[str]:
    """The same run with other training images."""
    config = titok[0].removeprefix("config=")
    tree = read_yaml(config)
    tree["data"]["train"] = {"name": name, "path": str(path), "image_size": 16}
    write_yaml(config, tree)
    return titok


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def checkpoints(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())


# ---- options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "arguments", "key", "near"),
    [
        ("train_titok", [TITOK, "training.max_step=3"], "training.max_step", "max_steps"),
        ("train_titok", [TITOK, "tokenizer.encoder_dept=3"], "tokenizer.encoder_dept", "encoder_depth"),
        ("train_titok", [TITOK, "tokenizer.quantizer.codebok_size=3"], "codebok_size", "codebook_size"),
        ("train_titok", [TITOK, "tokenizer.name=titoc"], "tokenizer.name='titoc'", "titok"),
        ("train_titok", [TITOK, "data.train.random_flp=true"], "data.train.random_flp", "random_flip"),
        ("train_titok", [TITOK, "losses.perceptual.lpips_wight=1"], "lpips_wight", "lpips_weight"),
        ("train_rar", [RAR, "optimiser.beta1=0"], "optimiser", "optimizer"),
        ("sample_imagenet", ["generator=a", "output=b", "num_sample=3"], "num_sample", "num_samples"),
        ("pretokenize", ["tokenizer=a", "output=b", "crop=flip"], "crop ", "crops"),
        ("reconstruct", ["tokenizer=a", "outptu=b"], "outptu", "output"),
    ],
)
def test_mistyped_key(refused, tmp_path, script, arguments, key, near):
    if script.startswith("train"):
        arguments = [*arguments, f"experiment.output_dir={tmp_path}/run"]
    said = refused(script, *arguments)
    assert key in said and f"did you mean {near!r}" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("training: {max_steps: many}", "training.max_steps='many' has the wrong type; expected int"),
        ("training: {max_stpes: 3}", "training.max_stpes is not an option (did you mean 'max_steps'?)"),
        (
            "tokenizer: {encoder_depth: deep}",
            "tokenizer.encoder_depth='deep' has the wrong type; expected int",
        ),
        ("losses: 3", "losses=3 has the wrong type; expected section"),
        ("data: {train: [1]}", "data.train=[1] has the wrong type; expected section"),
        ("schedule: {name: cosin}", "schedule.name='cosin' is not allowed; expected one of cosine, constant"),
        ("a: [", "cannot be read"),
    ],
)
def test_mistake_in_a_file(refused, titok, tmp_path, line, said):
    (tmp_path / "more.yaml").write_text(line)
    assert said in refused("train_titok", *titok, f"config={tmp_path}/more.yaml")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        (
            "train_titok",
            ["training.max_steps=2.5"],
            "training.max_steps=2.5 has the wrong type; expected int",
        ),
        ("train_titok", ["training.max_steps=0"], "training.max_steps=0 must be at least 1"),
        (
            "train_titok",
            ["optimizer.learning_rate=fast"],
            "optimizer.learning_rate='fast' has the wrong type",
        ),
        (
            "train_titok",
            ["tokenizer.encoder_patch_size=5"],
            "image_size=16 must be a multiple of the patch size 5",
        ),
        (
            "train_titok",
            ["experiment.trackers=[wandv]"],
            "'wandv' is unknown; choose from tensorboard, wandb",
        ),
        ("train_titok", ["training"], "argument 'training' is not understood; write key=value"),
        ("train_rar", ["rar.class_label_dropout=2"], "class_label_dropout=2.0 must be in [0, 1]"),
        ("train_rar", ["sampling.temperature=-1"], "sampling: temperature=-1.0 must not be negative"),
        ("train_rar", ["generator.num_heads=5"], "num_heads"),
    ],
)
def test_wrong_value_on_the_command_line(refused, titok, tiny_token_file, tmp_path, script, arguments, said):
    run = [RAR, f"data.tokens={tiny_token_file}", f"experiment.output_dir={tmp_path}/run"]
    assert said in refused(script, *(titok if script == "train_titok" else run), *arguments)
    assert not (tmp_path / "run").exists()


LARGE_CODEBOOKS = {
    "magvit2": [
        ("tokenizer.quantizer.bits=0", "tokenizer.quantizer: bits=0 must be in 1 ... 62"),
        ("tokenizer.quantizer.bits=63", "tokenizer.quantizer: bits=63 must be in 1 ... 62"),
        ("tokenizer.quantizer.bits=40", "tokenizer.quantizer has 1099511627776 codes, too many"),
        ("tokenizer.quantizer.codebook_size=64", "tokenizer.quantizer.codebook_size is not an option"),
        ("tokenizer.quantizer.entropy_temperature=0", "entropy_temperature=0.0 must be above 0"),
        ("tokenizer.image_size=18", "tokenizer: image_size=18 must be a multiple of 4"),
        (
            "schedule.drop_steps=[]",
            "schedule.drop_steps=[] belong to schedule.name='steps', which needs them",
        ),
        ("schedule.name=cosine", "schedule.drop_steps=[2, 25] belong to schedule.name='steps'"),
        ("schedule.drop_steps=[25,2]", "schedule.drop_steps=[25, 2] must rise"),
        ("schedule.drop_factor=2", "schedule.drop_factor=2.0 be in (0, 1]"),
        ("losses.gan_loss=hinge_softplu", "did you mean 'hinge_softplus'?"),
        ("losses.lecam_form=logit", "losses.lecam_form='logit' is not allowed; expected one of mean, logits"),
        ("losses.entropy_boost=-1", "losses.entropy_boost=-1.0 must not be negative"),
        ("losses.entropy_boost_steps=0", "losses.entropy_boost_steps=0 must be at least 1"),
        ("discriminator.num_stages=0", "discriminator: base_channels=8 and num_stages=0 must be at least 1"),
    ],
    "ibq": [
        ("tokenizer.quantizer.chunk=0", "chunk=0 must be at least 1"),
        ("losses.discriminator_first=maybe", "losses.discriminator_first='maybe' has the wrong type"),
    ],
    "factorized_ar": [
        ("generator.factors=[6,9]", "generator: factors 6 x 9 make 54 tokens, but the codebook has 48"),
        ("generator.factors=[48]", "generator: factors=[48] must be 2 sizes or more"),
        ("generator.factors=[1,48]", "factors=[1, 48] must be sizes of sub-tokens, each at least 2"),
        ("generator.factors=48", "generator.factors=48 has the wrong type; expected list of int"),
        ("generator.class_rotation=one", "expected one of zero, identity"),
        ("generator.rope=2d", "num_tokens=6 is not a square grid; expected n * n tokens, or rope=1d"),
        (
            "sampling.temperature=[1,1,1]",
            "sampling.temperature=[1.0, 1.0, 1.0] has 3 numbers, but tokens have G=2",
        ),
        ("sampling.top_p=[0.5,2]", "sampling: top_p=2.0 must be in (0, 1]"),
        (
            "sampling.guidance_power=[1,1]",
            "sampling.guidance_power=[1, 1] has the wrong type; expected float",
        ),
        ("data.factors=[8,8]", "data.factors=[8, 8] and generator.factors=[6, 8] are both given"),
        ("optimizer.weight_decay_end=-1", "optimizer.weight_decay_end=-1.0 must not be negative"),
        ("schedule.warmup_start=2", "schedule.warmup_start=2.0 must be in [0, 1]"),
        ("schedule.warmup_steps=-1", "schedule.warmup_steps=-1 must not be negative"),
        ("schedule.plateau=1", "schedule.plateau=1.0 in [0, 1)"),
        ("schedule.name=lineer", "did you mean 'linear'?"),
    ],
    "ibq_ar": [
        ("generator.factors=[6,8]", "generator.factors is not an option"),
        ("sampling.temperature=[1,1]", "sampling.temperature=[1.0, 1.0] has 2 numbers, but tokens have G=1"),
        ("generator.hidden_size=30", "head_dim=15 must be a multiple of 2"),
    ],
    "rar": [
        ("data.factors=[6,8]", "data.factors=[6, 8] must be two or more equal sizes"),
        ("data.factors=[8,8]", "data.factors 8 x 8 make 64 tokens, but the codebook has 48"),
    ],
}


@pytest.mark.parametrize(
    ("twin", "argument", "said"), [(twin, *case) for twin, cases in LARGE_CODEBOOKS.items() for case in cases]
)
def test_wrong_option_for_a_large_codebook(refused, tiny_token_file, tmp_path, twin, argument, said):
    run = [f"config=configs/debug/{twin}.yaml", f"experiment.output_dir={tmp_path}/run", argument]
    script = "train_titok" if twin in ("magvit2", "ibq") else "train_rar"
    tokens = [f"data.tokens={tiny_token_file}"] if script == "train_rar" else []
    assert said in refused(script, *run, *tokens)
    assert not (tmp_path / "run").exists()


def test_in_a_process_of_its_own():
    """What the other tests cannot see: the exit code, and that nothing but the line is on the error stream."""
    command = [sys.executable, str(REPOSITORY / "train_titok.py"), TITOK, "training.max_step=3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("error: training.max_step is not an option (did you mean 'max_steps'?)")
    assert done.stderr.count("\n") == 1


# ---- files and data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "arguments", "name"),
    [
        ("train_titok", ["config=nowhere.yaml"], "config file nowhere.yaml does not exist"),
        ("train_rar", [RAR, "data.tokens=nowhere.tokens"], "nowhere.tokens"),
        ("sample_imagenet", ["generator=nowhere", "output=x"], "nowhere does not exist"),
        ("pretokenize", ["tokenizer=nowhere", "output=x"], "nowhere does not exist"),
        ("reconstruct", ["tokenizer=nowhere", "output=x"], "nowhere does not exist"),
    ],
)
def test_missing_file(refused, tmp_path, monkeypatch, script, arguments, name):
    monkeypatch.chdir(tmp_path)
    assert name in refused(script, *arguments)
    assert not list(tmp_path.iterdir())


def test_empty_and_label_less_folders(refused, titok, image_folder, tmp_path):
    said = refused("train_titok", *images_at(titok, tmp_path / "nowhere"))
    assert "nowhere does not exist" in said
    (tmp_path / "images").mkdir()
    said = refused("train_titok", *images_at(titok, tmp_path / "images"))
    assert f"image folder {tmp_path}/images is empty" in said
    shutil.copy(next(image_folder.rglob("*.png")), tmp_path / "images")
    assert "has no labels" in refused("train_titok", *images_at(titok, tmp_path / "images"))
    (tmp_path / "images/cats").mkdir()
    assert "cats holds no image" in refused("train_titok", *images_at(titok, tmp_path / "images"))


def test_shards_without_labels_and_cut_in_half(refused, titok, image_folder, tmp_path):
    shard = tmp_path / "train-0000.tar"
    for labels in (False, True):
        with tarfile.open(shard, "w") as tar:
            for i, path in enumerate(sorted(image_folder.rglob("*.png"))):
                tar.add(path, f"{i:03d}.png")
                if labels:
                    member = tarfile.TarInfo(f"{i:03d}.cls")
                    member.size = 1
                    tar.addfile(member, io.BytesIO(str(i % 2).encode()))
        if not labels:
            said = refused("train_titok", *images_at(titok, shard, "webdataset"))
            assert "train-0000.tar has no labels" in said
    cut(shard)
    said = refused("train_titok", *images_at(titok, tmp_path / "train-{0000..0000}.tar", "webdataset"))
    assert f"shard {shard} is cut short" in said
    missing = images_at(titok, tmp_path / "train-{0000..0001}.tar", "webdataset")
    assert "train-0001.tar does not exist" in refused("train_titok", *missing)


def test_images_that_do_not_fit_the_tokenizer(refused, titok, tiny_token_file):
    said = refused("train_titok", *titok, "data.validation.image_size=20")
    assert "data.validation gives images of 20 pixels, but tokenizer.image_size=16" in said
    config = titok[0].removeprefix("config=")
    tree = read_yaml(config)
    tree["data"]["train"] = {"name": "tokens", "path": str(tiny_token_file)}
    write_yaml(config, tree)
    assert "data.train gives tokens" in refused("train_titok", *titok)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_unreadable_images(refused, titok, image_folder, tmp_path, num_workers):
    broken = shutil.copytree(image_folder, tmp_path / "images")
    for path in sorted(broken.rglob("*.png")):
        cut(path)
    run = [*images_at(titok, broken), f"training.num_workers={num_workers}"]
    said = refused("train_titok", *run, early=False)
    assert "7 examples in a row cannot be read; the last is" in said and ".png" in said


def test_some_unreadable_images(refused, titok, image_folder, tmp_path):
    broken = shutil.copytree(image_folder, tmp_path / "images")
    cut(sorted(broken.rglob("*.png"))[2])
    said = refused("train_titok", *images_at(titok, broken), "training.max_skipped=0", early=False)
    assert "samples could not be read, more than training.max_skipped=0" in said


# ---- models and tokens -----------------------------------------------------------------------------------------


def test_weights_of_an_unknown_layout(refused, tiny_tokenizer_run, image_folder, tmp_path):
    foreign = shutil.copytree(tiny_tokenizer_run, tmp_path / "foreign")
    write_yaml(foreign / "config.yaml", read_yaml(foreign / "config.yaml") | {"format": "magvit"})
    images = f"input={next(image_folder.iterdir())}"
    said = refused("reconstruct", f"tokenizer={foreign}", f"output={tmp_path}/out", images)
    assert "format='magvit' is unknown; choose" in said and "magvit2_first_stage" in said
    assert not (tmp_path / "out").exists()


def test_tokens_of_another_tokenizer(
    refused, tiny_tokenizer_run, tiny_generator_run, tiny_token_file, tmp_path
):
    rar = [RAR, f"data.tokens={tiny_token_file}", f"experiment.output_dir={tmp_path}/run"]
    said = refused("train_rar", *rar, f"data.tokenizer={tiny_tokenizer_run}")
    assert "belongs to tokens of another tokenizer" in said and str(tiny_token_file) in said
    other = shutil.copytree(tiny_tokenizer_run, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({k: v + 0.01 for k, v in weights.items()}, other / "model.safetensors")
    sample = [f"generator={tiny_generator_run}", f"output={tmp_path}/samples"]
    assert "of another tokenizer" in refused("sample_imagenet", *sample, f"tokenizer={other}")
    assert not (tmp_path / "run").exists() and not (tmp_path / "samples").exists()


def test_token_files_that_do_not_fit(refused, tiny_token_file, tmp_path):
    rar = [RAR, f"experiment.output_dir={tmp_path}/run"]
    named = f"data.tokens={tiny_token_file}"
    said = refused("train_rar", *rar, named, "generator.codebook_size=1024")
    assert f"generator.codebook_size=1024, but {tiny_token_file} has 48" in said
    content = tiny_token_file.read_bytes()
    half, other = tmp_path / "half.tokens", tmp_path / "other.tokens"
    half.write_bytes(content[: len(content) // 2])
    assert "half.tokens is cut short" in refused("train_rar", *rar, f"data.tokens={half}")
    write_tokens(other, ["cat", "Food & Drink", "dog"])
    said = refused("train_rar", *rar, named, f"data.validation={other}")
    assert "differ in class_names" in said
    assert not (tmp_path / "run").exists()


def write_tokens(path: Path, class_names: list[str]) -> None:
    """A token file like `tiny_token_file` with other classes."""
    from data.token_memmap import TokenHeader, TokenWriter

    header = TokenHeader(
        num_images=3,
        crops=1,
        num_tokens=6,
        codebook_size=48,
        tokenizer="nobody",
        weight_hash="0" * 16,
        image_size=16,
        class_names=class_names,
    )
    TokenWriter.create(path, header)
    writer = TokenWriter(path)
    writer.write(range(3), torch.zeros(3, 1, 6, dtype=torch.int64).numpy(), range(3))
    writer.close()
    TokenWriter.finish(path)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ("3", "class 3 is out of range; this generator knows 0..2"),
        ("[0, -1]", "class -1 is out of range; this generator knows 0..2"),
        ("dig", "class 'dig' is unknown (did you mean 'dog'?)"),
        ("1.5", "classes=1.5 has the wrong type"),
    ],
)
def test_class_that_does_not_exist(refused, tiny_generator_run, tmp_path, classes, said):
    arguments = [f"generator={tiny_generator_run}", f"output={tmp_path}/samples", f"classes={classes}"]
    assert said in refused("sample_imagenet", *arguments)
    assert not (tmp_path / "samples").exists()


# ---- checkpoints -----------------------------------------------------------------------------------------------


@pytest.fixture
def begun(program, titok, no_curves, tmp_path):
    """Arguments of a run that has checkpoints at steps 2 and 4 and is to go on to 6."""
    done = program(*SCRIPTS["train_titok"], *titok, "training.max_steps=4")
    assert done.code == 0, done.err
    assert checkpoints(tmp_path) == ["step-00000002", "step-00000004"]
    return titok


def test_resume_with_another_model(refused, begun, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    said = refused("train_titok", *begun, "tokenizer.encoder_depth=2")
    assert "step-00000004 was trained with another model: tokenizer.encoder_depth was 1, is now 2" in said
    assert "choose another experiment.output_dir" in said
    # Also if there would be nothing left to do.
    said = refused("train_titok", *begun, "training.max_steps=4", "tokenizer.quantizer.codebook_size=32")
    assert "tokenizer.quantizer.codebook_size was 64, is now 32" in said
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_resume_from_a_checkpoint_cut_in_half(refused, program, begun, tmp_path):
    newest = tmp_path / "run/checkpoints/step-00000004"
    for name in ("ema.safetensors", "optimizers.pt", "state.json"):
        whole = (newest / name).read_bytes()
        cut(newest / name)
        said = refused("train_titok", *begun)
        assert f"{newest / name} cannot be used" in said
        assert f"remove {newest} to begin from step-00000002" in said
        (newest / name).write_bytes(whole)
    shutil.rmtree(newest)  # what the message says to do
    done = program(*SCRIPTS["train_titok"], *begun)
    assert done.code == 0 and "2 done of 6" in done.out


def test_use_of_weights_cut_in_half(refused, begun, image_folder, tmp_path):
    run, output = tmp_path / "run", f"output={tmp_path}/out"
    images = f"input={next(image_folder.iterdir())}"
    cut(run / "model.safetensors")
    said = refused("reconstruct", f"tokenizer={run}", output, images)
    assert f"{run}/model.safetensors is damaged" in said
    (run / "model.safetensors").unlink()  # an unfinished run gives its newest checkpoint
    cut(run / "checkpoints/step-00000004/ema.safetensors")
    said = refused("pretokenize", f"tokenizer={run}", output)
    assert "step-00000004/ema.safetensors is damaged" in said
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk with room for a few checkpoints; skips where none can be mounted."""
    folder = tmp_path / "run"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    # A failed writer may hold its file until it is collected.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_disk_full_while_saving(refused, titok, small_disk, tmp_path):
    keep = ["training.max_steps=60", "training.save_every=2", "training.keep_checkpoints=60"]
    said = refused("train_titok", *titok, *keep, early=False)
    assert "cannot save checkpoint" in said and "the last complete one is" in said
    names = checkpoints(tmp_path)
    assert names and all(name.startswith("step-") for name in names) and names[-1] in said
    for name in names:
        for file in (small_disk / "checkpoints" / name).glob("*.safetensors"):
            load_file(file)


def test_disk_too_small_from_the_start(refused, titok, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("storage.files.shutil.disk_usage", lambda folder: usage)
    said = refused("train_titok", *titok)
    assert "experiment.output_dir=" in said and "MiB free, but a checkpoint needs" in said


def test_loss_that_is_not_finite(refused, begun, tmp_path):
    # A rate that no model survives, from step 4 on.
    said = refused(
        "train_titok", *begun, "training.max_steps=60", "optimizer.learning_rate=1e30", early=False
    )
    assert "step " in said and "is not finite" in said
    assert any(name in said for name in ("total_loss", "reconstruction_loss", " of model", " of ema"))
    assert checkpoints(tmp_path)[-1] == "step-00000004"
    assert all(
        t.isfinite().all()
        for p in (tmp_path / "run/checkpoints").rglob("*.safetensors")
        for t in load_file(p).values()
    )
