"""Where programs write, and who else writes there."""

import pytest

import sample_imagenet
import train_rar
from jobs.convert_checkpoint import ConvertCheckpointOptions, convert_checkpoint
from jobs.convert_tokens import ConvertTokensOptions, convert_tokens
from jobs.evaluate import EvaluateOptions, evaluate
from jobs.pretokenize import PretokenizeOptions, pretokenize
from jobs.reconstruct import ReconstructOptions, reconstruct
from jobs.sampling import SampleOptions
from tests.evaluator.toy import ToyInception, put_in_place
from training.generator_run import GeneratorRun

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
    files = {"x.tokens", "x.jsonl", "ref.npz", "result.json"}
    assert made == {"run.yaml", "samples", "run", "from_yaml", "pairs", "exported", *files}
    assert not list((home.parent / "work").iterdir())
