"""Where programs write, and who else writes there."""

import json
import os
import re
import subprocess
import sys

import pytest

import sample_imagenet
import train_rar
import train_titok
from common.config import REPOSITORY, run_script
from jobs.compare_tokenizers import compare_tokenizers
from jobs.convert_checkpoint import convert_checkpoint
from jobs.convert_tokens import convert_tokens
from jobs.evaluate import evaluate
from jobs.fit_codebook import fit_codebook
from jobs.options.compare_tokenizers import CompareOptions
from jobs.options.convert_checkpoint import ConvertCheckpointOptions
from jobs.options.convert_tokens import ConvertTokensOptions
from jobs.options.evaluate import EvaluateOptions
from jobs.options.fit_codebook import FitOptions
from jobs.options.pretokenize import PretokenizeOptions
from jobs.options.reconstruct import ReconstructOptions
from jobs.options.reproduce import ReproduceOptions
from jobs.options.sample_images import SampleOptions
from jobs.options.summarize import SummaryOptions
from jobs.pretokenize import pretokenize
from jobs.reconstruct import reconstruct
from jobs.reproduce import reproduce
from jobs.summarize import summarize
from storage import locks
from storage.locks import reserved_file, reserved_folder
from tests.evaluator.toy import ToyInception, put_in_place
from training.generator_settings import GeneratorRun
from training.tokenizer_settings import TokenizerRun
from training.trainer import Trainer

SHORT = ["config=configs/debug/rar.yaml", "training.max_steps=1", "training.num_workers=0"]

IMAGES = ["data.name=image_folder", "data.path=~/images", "data.image_size=16", "num_workers=0"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, and another folder to work in."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_a_tilde_is_the_home_folder_in_every_program(
    home, program, monkeypatch, tiny_tokenizer_run, tiny_generator_run, tiny_token_file, image_folder
):
    put_in_place(monkeypatch, "inception", ToyInception())
    monkeypatch.setattr("training.trainer.draw_curves", lambda *_: False)
    for name, target in {
        "tok": tiny_tokenizer_run,
        "gen": tiny_generator_run,
        "images": image_folder,
    }.items():
        (home / name).symlink_to(target)
    (home / "train.tokens").symlink_to(tiny_token_file)
    (home / "run.yaml").write_text("experiment: {output_dir: ~/from_yaml}\n")
    tokens = "data.tokens=~/train.tokens"
    for main, settings, *arguments in (
        (sample_imagenet, SampleOptions, "generator=~/gen", "num_samples=2", "output=~/samples"),
        (train_rar, GeneratorRun, *SHORT, tokens, "experiment.output_dir=~/run"),
        (train_rar, GeneratorRun, *SHORT, tokens, "config=~/run.yaml"),
        (pretokenize, PretokenizeOptions, "tokenizer=~/tok", "output=~/x.tokens", *IMAGES),
        (convert_tokens, ConvertTokensOptions, "input=~/x.tokens", "output=~/x.jsonl"),
        (reconstruct, ReconstructOptions, "tokenizer=~/tok", "input=~/images", "output=~/pairs"),
        (evaluate, EvaluateOptions, "samples=~/samples", "make_ref=~/ref.npz", "metrics=[fid]"),
        (evaluate, EvaluateOptions, "samples=~/samples", "metrics=[is]", "output=~/result.json"),
        (convert_checkpoint, ConvertCheckpointOptions, "input=~/tok", "output=~/exported"),
    ):
        done = program(main, settings, *arguments)
        assert done.code == 0, done.err
    made = {p.name for p in home.iterdir() if not p.is_symlink()}
    files = {"x.tokens", "x.jsonl", "ref.npz", "result.json", "result_pictures.png"}
    assert made == {"run.yaml", "samples", "run", "from_yaml", "pairs", "exported", *files}
    assert not list((home.parent / "work").iterdir())


def meanwhile(path, *job) -> str:
    """Run a program in another process; returns its exit code and what it printed as an error."""
    pid = os.fork()
    if not pid:
        try:
            sys.stderr = path.open("w")
            program, settings, *arguments = job
            sys.argv = ["program", *arguments]
            run_script(program, settings, "")
            sys.stderr.write("0")
        except SystemExit as end:
            sys.stderr.write(str(end.code))
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.waitpid(pid, 0)
    return path.read_text()


@pytest.fixture
def no_patience(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.0)


def test_a_training_started_twice_is_one_training(
    tmp_path, program, monkeypatch, tiny_token_file, no_patience
):
    monkeypatch.setattr("training.trainer.draw_curves", lambda *_: False)
    folder, after, refused = tmp_path / "run", Trainer._after_step, []
    arguments = [*SHORT, f"data.tokens={tiny_token_file}", f"experiment.output_dir={folder}"]
    arguments += ["training.max_steps=3", "training.log_every=1", "training.evaluate_every=0"]

    def second_start(self, step, *rest):
        if step == 2:
            refused.append(meanwhile(tmp_path / "err", train_rar.main, GeneratorRun, *arguments))
        after(self, step, *rest)

    monkeypatch.setattr(Trainer, "_after_step", second_start)
    assert program(train_rar, GeneratorRun, *arguments).code == 0
    (line,) = refused
    assert line.startswith(
        f"error: experiment.output_dir={folder} is being written by process {os.getpid()} on "
    )
    records = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3]
    assert program(train_rar, GeneratorRun, *arguments).code == 0  # and it can be started again
    assert not (folder / ".lock").exists()


def test_no_program_writes_where_another_one_does(
    tmp_path, no_patience, tiny_tokenizer_run, tiny_generator_run, tiny_token_file
):
    folder, file = tmp_path / "folder", tmp_path / "x.tokens"
    teacher = ["teacher.name=test_vit.r160_in1k", "teacher.weights=missing", "data.name=openmoji"]
    runs = [f"tokenizer={tiny_tokenizer_run}", f"generator={tiny_generator_run}", f"samples={tmp_path}"]
    titok, lines = "config=configs/debug/titok.yaml", tmp_path / "x.jsonl"
    lines.write_text('{"class_id": 1, "tokens": [1, 2]}\n')
    with reserved_folder(folder), reserved_file(file):
        for main, settings, *arguments in (
            (train_titok.main, TokenizerRun, titok, f"experiment.output_dir={folder}"),
            (sample_imagenet.main, SampleOptions, f"generator={tiny_generator_run}", f"output={folder}"),
            (pretokenize, PretokenizeOptions, f"tokenizer={tiny_tokenizer_run}", f"output={file}"),
            (reconstruct, ReconstructOptions, f"tokenizer={tiny_tokenizer_run}", f"output={folder}"),
            (reproduce, ReproduceOptions, "model=openmoji-titok", f"output={folder}"),
            (compare_tokenizers, CompareOptions, f"output={folder}"),
            (fit_codebook, FitOptions, *teacher, f"output={folder}"),
            (convert_tokens, ConvertTokensOptions, f"input={lines}", f"output={file}", "codebook_size=9"),
            (convert_tokens, ConvertTokensOptions, f"input={tiny_token_file}", f"output={folder}"),
            (convert_checkpoint, ConvertCheckpointOptions, f"input={tiny_tokenizer_run}", f"output={folder}"),
            (summarize, SummaryOptions, *runs, f"output={folder}"),
        ):
            line = meanwhile(tmp_path / "err", main, settings, *arguments)
            assert "is being written by process" in line and line.count("\n") == 0, (main, line)
            assert [p.name for p in folder.iterdir()] == [".lock"], main


def test_programs_end_well_although_nobody_reads_them(tmp_path, tiny_generator_run, tiny_token_file):
    """Two real processes at once: a training piped into `head`, in an ASCII terminal, and sampling on a full disk."""
    run, samples = tmp_path / "l\u00e4ufe \u2588", tmp_path / "samples"
    training = ["train_rar.py", *SHORT, "training.max_steps=5", "training.log_every=1"]
    training += [f"data.tokens={tiny_token_file}", f"experiment.output_dir={run}"]
    sampling = ["sample_imagenet.py", f"generator={tiny_generator_run}", "num_samples=2", f"output={samples}"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    shell = '"$@" 2>&- | head -n 1; exit ${PIPESTATUS[0]}', '"$@" > /dev/full 2>&1 <&-'
    started = [
        subprocess.Popen(
            ["bash", "-c", command, "bash", sys.executable, *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for command, arguments in zip(shell, (training, sampling), strict=True)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert b"Traceback" not in b"".join(outputs)
    assert (run / "model.safetensors").is_file() and len(
        (run / "metrics.jsonl").read_text().splitlines()
    ) == 6
    assert (samples / "samples.npz").is_file()


def test_results_of_others_are_not_mixed(
    tmp_path, program, tiny_tokenizer_run, tiny_generator_run, image_folder
):
    output, other = tmp_path / "out", tmp_path / "other"
    pairs = [f"tokenizer={tiny_tokenizer_run}", f"output={output}"]
    assert program(reconstruct, ReconstructOptions, *pairs, f"input={image_folder}").code == 0
    assert len(list(output.rglob("*.png"))) == 8
    one = next((image_folder / "blue").iterdir())
    done = program(reconstruct, ReconstructOptions, *pairs, f"input={one}")
    assert f"{output} holds earlier reconstructions of 7 images, which are replaced" in done.out
    assert {p.name for p in output.rglob("*.png")} == {"reconstructions.png", f"{one.stem}_png.png"}

    for source, folder, code, message in (
        (tiny_tokenizer_run, other, 0, ""),
        (tiny_tokenizer_run, other, 0, ""),  # the same again
        (tiny_generator_run, other, 1, "holds another model"),
        (tiny_generator_run, tiny_tokenizer_run, 1, "is a run folder"),
        (tiny_generator_run, f"{other}\noverwrite=true", 0, ""),
    ):
        arguments = f"input={source}\noutput={folder}".split("\n")
        done = program(convert_checkpoint, ConvertCheckpointOptions, *arguments)
        assert done.code == code and message in done.err, done.err

    runs = [f"tokenizer={tiny_tokenizer_run}", f"generator={tiny_generator_run}", f"samples={output}"]
    done = program(summarize, SummaryOptions, *runs, f"output={tiny_generator_run}")
    assert done.code == 1 and "holds one of the results; name a folder of its own" in done.err


def test_every_program_reserves_what_it_writes():
    texts = {path.stem: path.read_text() for path in (REPOSITORY / "jobs").glob("*.py")}
    options = {path.stem: path.read_text() for path in (REPOSITORY / "jobs" / "options").glob("*.py")}
    writers = {name for name, text in options.items() if re.search(r"^    output: ", text, re.MULTILINE)}
    assert len(writers) >= 15
    programs = {{"sample_images": "sampling"}.get(name, name) for name in writers}
    assert not [name for name in programs if not re.search(r"(with|,) reserved", texts[name])]
