"""What README.md and docs/ tell people to type exists: programs, options, files, links; figures are the catalog's."""

import dataclasses
import functools
import importlib
import re
import shlex
from collections.abc import Iterator
from glob import glob

import pytest
from braceexpand import braceexpand

from common.build import build_dataclass, check_options, choose
from common.config import REPOSITORY, merge_arguments, merge_sources, resolve
from common.recipes import leave_out
from data import DATASETS
from jobs.options.plan import PlanOptions
from modeling.factory import GENERATORS, QUANTIZERS, TOKENIZERS
from modeling.losses import DISCRIMINATORS
from modeling.pretrained.catalog import RELEASES, Release
from modeling.pretrained.teachers import build_teacher
from modeling.sampling.settings import MaskedSamplingSettings, SamplingSettings
from modeling.tokenizers.vqgan_parts import PixelDecoder

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PROGRAMS = {
    "train_titok.py": "training.tokenizer_run.TokenizerRun",
    "train_rar.py": "training.generator_run.GeneratorRun",
    "sample_imagenet.py": "jobs.sampling.SampleOptions",
    "scripts/reproduce.py": "jobs.reproduce.ReproduceOptions",
    "scripts/fit_codebook.py": "jobs.fit_codebook.FitOptions",
    "scripts/compare_tokenizers.py": "jobs.compare_tokenizers.CompareOptions",
    "scripts/reconstruct.py": "jobs.reconstruct.ReconstructOptions",
    "scripts/pretokenize.py": "jobs.pretokenize.PretokenizeOptions",
    "scripts/convert_checkpoint.py": "jobs.convert_checkpoint.ConvertCheckpointOptions",
    "scripts/convert_reference.py": "jobs.convert_reference.ConvertReferenceOptions",
    "scripts/convert_tokens.py": "jobs.convert_tokens.ConvertTokensOptions",
    "scripts/evaluate.py": "jobs.evaluate.EvaluateOptions",
    "scripts/linear_probe.py": "jobs.linear_probe.ProbeOptions",
    "scripts/summarize.py": "jobs.summarize.SummaryOptions",
    "scripts/leaderboard.py": "jobs.leaderboard.LeaderboardOptions",
    "scripts/prepare_data.py": "jobs.prepare_data.PrepareOptions",
    "scripts/inspect_data.py": "jobs.inspect_data.InspectOptions",
    "scripts/own_images.py": "jobs.options.own_images.OwnImagesOptions",
    "scripts/photo_crops.py": "jobs.photo_crops.PhotoCropsOptions",
    "scripts/scaling_table.py": "jobs.scaling_table.ScalingTableOptions",
}
LAUNCHERS = ("python", "accelerate", "torchrun", "sbatch", "bash")
# A page about another program's files shows its key names on our command lines.
FOREIGN = {"original_configs.md"}
ASSIGNMENT = re.compile(r"[A-Za-z_][\w.]*=")
LOOP = re.compile(r"^\s*for (\w+) in ([^;]+); do\n(.*?)^\s*done$", re.MULTILINE | re.DOTALL)

page = pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)


def shell_text(text: str) -> str:
    """Everything on a page that is meant for a shell, loops unrolled."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    inline = [s for s in re.findall(r"`([^`\n]+)`", text) if s.split()[0] in LAUNCHERS]
    shell = "\n".join([*blocks, *inline]).replace("\\\n", " ")

    def unroll(match: re.Match) -> str:
        name, values, body = match.groups()
        return "\n".join(re.sub(rf"\$\{{?{name}\b\}}?", value, body) for value in values.split())

    return LOOP.sub(unroll, shell)


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """(program, its arguments) of every line that starts a Python program."""
    for line in shell_text(text).splitlines():
        words = shlex.split(line, comments=True)
        while words and ASSIGNMENT.match(words[0]):
            words = words[1:]
        if not words or words[0] not in LAUNCHERS or words[-1] == "..." or "-m" in words:
            continue
        files = [i for i, word in enumerate(words) if word.endswith((".py", ".sh"))]
        if not files:
            continue
        start = files[0]
        if words[start].endswith("slurm.sh"):
            assert len(files) > 1, f"{line}: no program for slurm.sh"
            start = files[1]
        yield words[start], words[start + 1 :]


@functools.cache
def options_of(program: str) -> type:
    module, _, name = PROGRAMS[program].rpartition(".")
    return getattr(importlib.import_module(module), name)


def check_sections(tree: dict, kind: str) -> None:
    """Options of the models and data sets in a merged tree, against the constructors they are for."""
    parts = [
        ("tokenizer", TOKENIZERS, tree.get("tokenizer"), ("quantizer", "teacher", "pixel_decoder")),
        ("generator", GENERATORS, tree.get("generator"), ("codebook_size", "num_tokens", "num_classes")),
        ("discriminator", DISCRIMINATORS, tree.get("discriminator"), ()),
    ]
    data = tree.get("data") or {}
    if kind == "train":
        sections = [(f"data.{key}", data.get(key)) for key in ("train", "validation", "images")]
        parts += [(key, DATASETS, section, ()) for key, section in sections if isinstance(section, dict)]
    elif data:
        parts = [("data", DATASETS, data, ("image_size",))]
    else:
        return
    for key, builders, section, given in parts:
        if section is None:
            continue
        builder, options = choose(key, builders, section)
        if key == "tokenizer":
            check_parts(options)
        check_options(key, builder, {k: v for k, v in options.items() if k not in given}, runtime=given)


def check_parts(options: dict) -> None:
    """Options of what a tokenizer is made of; they are taken out of its own."""
    if "quantizer" in options:
        quantizer = options.pop("quantizer")
        check_options("tokenizer.quantizer", *choose("tokenizer.quantizer", QUANTIZERS, quantizer))
    if "teacher" in options:
        check_options("tokenizer.teacher", build_teacher, options.pop("teacher"))
    if options.get("pixel_decoder"):
        decoder = options.pop("pixel_decoder")
        check_options("tokenizer.pixel_decoder", PixelDecoder, decoder, runtime=("in_channels",))


def check_command(program: str, arguments: list[str]) -> None:
    """As the program itself would, with everything but the files that a reader brings along."""
    assert (REPOSITORY / program).is_file(), f"{program} does not exist"
    if program == "scripts/plan.py":  # its own options beside those of the training programs
        names = {field.name for field in dataclasses.fields(PlanOptions)}
        own = [a for a in arguments if a.split("=")[0] in names]
        build_dataclass(PlanOptions, merge_arguments(own))
        arguments = [a for a in arguments if a not in own]
    of_training = program in ("scripts/show_config.py", "scripts/plan.py")
    if of_training and "--help" not in arguments:  # they take the arguments of the training programs
        program = "train_rar.py" if "generator" in merge_arguments(arguments) else "train_titok.py"
    if program.endswith(".sh") or program not in PROGRAMS or "--help" in arguments:
        assert program.endswith(".sh") or "--help" in arguments or not arguments, (
            f"{program} is not known here"
        )
        return
    twin = "configs/debug/titok.yaml" if program == "train_titok.py" else "configs/debug/rar.yaml"
    arguments = [f"config={twin}" if a == "config=FILE" else a for a in arguments if not a.startswith("$")]
    assert all(ASSIGNMENT.match(a) for a in arguments), f"{program}: {arguments} are not all key=value"
    options = options_of(program)
    tree = resolve(leave_out(merge_sources(arguments), options))
    if program.startswith("scripts/") and hasattr(options, "translate"):  # takes its options from a recipe
        tree = options.translate(tree)
    settings = build_dataclass(options, tree)
    if program.startswith("train_"):
        check_sections(tree, "train")
        if "sampling" in tree:
            masked = tree["generator"]["name"] in ("maskgit", "uvit")
            build_dataclass(MaskedSamplingSettings if masked else SamplingSettings, tree["sampling"])
    elif isinstance(getattr(settings, "data", None), dict):
        of_recipe = hasattr(options, "translate") and "name" not in settings.data
        check_sections({"data": settings.data}, "train" if of_recipe else "one")


@page
def test_command_lines_name_programs_and_options_that_exist(path):
    found = list(commands(path.read_text()))
    assert found or path.name not in ("README.md", "models.md", "maskgit.md", "tatitok.md", "training.md")
    for program, arguments in found:
        if path.name in FOREIGN:
            assert program in PROGRAMS
            continue
        try:
            check_command(program, arguments)
        except ValueError as error:
            pytest.fail(f"{path.name}: {program} {' '.join(arguments)}: {error}")


def test_the_check_of_command_lines_finds_mistakes():
    wrong = [
        "python train_titok.py config=configs/debug/titok.yaml tokenizer.image_sise=32",
        "python train_titok.py config=configs/debug/titok.yaml tokenizer.quantizer.codebook=32",
        "accelerate launch --num_processes 8 train_rar.py config=configs/rar/imagenet_b.yaml sampling.num_steps=8",
        "torchrun --nproc_per_node 8 sample_imagenet.py generator=rar-b output=x num_sample=8",
        "python scripts/pretokenize.py tokenizer=x output=y data.name=webdataset data.path=z data.classes=3",
        "sbatch --nodes 2 scripts/slurm.sh train_rar.py config=configs/rar/absent.yaml",
    ]
    for line in wrong:
        ((program, arguments),) = commands(f"```bash\n{line}\n```")
        with pytest.raises((ValueError, FileNotFoundError)):
            check_command(program, arguments)
    with pytest.raises(AssertionError, match="does not exist"):
        check_command("train_titoc.py", [])


def test_loops_and_prefixes_are_understood():
    text = "```bash\nfor s in a b; do\n    X=1 python train_titok.py config=$s.yaml \\\n        c.d=${s}e\ndone\n```"
    assert list(commands(text)) == [("train_titok.py", [f"config={s}.yaml", f"c.d={s}e"]) for s in "ab"]


@page
def test_configurations_that_are_named_exist(path):
    text = path.read_text()
    prose = re.sub(r"```bash\n.*?```", "", text, flags=re.DOTALL)
    for name in re.findall(r"\bconfigs/[\w./{},*]+", prose + shell_text(text)):
        for pattern in braceexpand(name.rstrip(".,")):
            assert glob(str(REPOSITORY / pattern)), f"{path.name}: {pattern} does not exist"


def test_the_recipes_in_the_readme_exist():
    rows = re.findall(r"^\| (`[^|]+) \|", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`(\w+/[\w{},*]+)`", row)]
    assert len(names) > 10
    for name in names:
        for pattern in braceexpand(f"configs/{name}.yaml"):
            assert glob(str(REPOSITORY / pattern)), f"{pattern} does not exist"


@page
def test_relative_links_resolve(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if not re.match(r"[a-z]+:|#", target):
            assert (path.parent / target.partition("#")[0]).exists(), f"{path.name}: {target} does not exist"


@page
def test_source_files_that_are_named_exist(path):
    rooms = "modeling|training|data|common|storage|compat|jobs|evaluator|tests|scripts|benchmarks"
    for name in re.findall(rf"`((?:{rooms})/[\w/]+\.\w+)`", path.read_text()):
        assert (REPOSITORY / name).is_file(), f"{path.name}: {name} does not exist"


def test_pages_are_reachable_from_the_readme():
    found, waiting = set(), [REPOSITORY / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in found:
            found.add(page)
            links = re.findall(r"\]\(([\w./]+\.md)", page.read_text())
            waiting += [(page.parent / link).resolve() for link in links]
    assert set(PAGES) <= found
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 200


ROWS = {
    cells[0].strip("`"): cells
    for line in (REPOSITORY / "docs" / "models.md").read_text().splitlines()
    if len(cells := [cell.strip() for cell in line.strip("|").split(" | ")]) == 7
}


def published(release: Release) -> list[str]:
    """Figures as the table writes them."""
    names = {"rfid": "rFID", "gfid": "gFID", "inception_score": "IS", "psnr": "PSNR", "ssim": "SSIM"}
    names |= {"lpips": "LPIPS", "codebook_usage": "usage"}
    digits = {"inception_score": ".1f", "ssim": ".3f", "lpips": ".3f", "codebook_usage": ".0%"}
    return [f"{names.get(k, k)} {v:{digits.get(k, '.2f')}}" for k, v in release.metrics.items()]


@pytest.mark.parametrize("name", RELEASES)
def test_the_table_of_models_agrees_with_the_catalog(name):
    release = RELEASES[name]
    tokens, parameters, figures, file, licence, command = ROWS[name][1:]
    if release.bits_per_image is None:
        assert tokens == f"{release.tokens} × {release.section['quantizer']['code_dim']} channels"
    else:
        assert tokens == f"{release.tokens} × {release.bits_per_image / release.tokens:.0f}"
    if "README" not in parameters:
        assert parameters == f"{release.parameters / 1e6:.1f} M"
        assert [f for f in published(release) if f not in figures] == []
    place = release.repo or next(
        (p for p in ("taming-transformers", "SEED-Voken") if p in (release.origin or "")), ""
    )
    assert (release.folder or f"`{place}`: `{release.file}`") in file
    assert licence.rstrip("*") == release.licence.partition(" (")[0]
    assert f"{release.kind}={name} " in command
    ((program, arguments),) = commands(command)
    assert program == {"tokenizer": "scripts/reconstruct.py", "generator": "sample_imagenet.py"}[release.kind]
    if release.kind == "generator" and not release.folder:
        assert "num_samples=50000" in arguments


def test_the_table_of_models_has_nothing_else():
    assert set(ROWS) - set(RELEASES) <= {"Name", ":---", "---", "openmoji-maskgit"}


def test_published_sampling_settings_of_masked_generators_are_in_their_page():
    text = (REPOSITORY / "docs" / "maskgit.md").read_text()
    for name, release in RELEASES.items():
        if name.startswith("maskgit-titok"):
            s = release.sampling
            keys = ("num_steps", "guidance_schedule", "guidance_scale", "temperature")
            row = next(line for line in text.splitlines() if f"`{release.tokenizer}`" in line)
            assert ", ".join(str(s[key]) for key in keys) in row
            assert "{gfid:.2f}, {inception_score}".format(**release.metrics) in row
