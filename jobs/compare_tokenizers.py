"""A table of several tokenizers: trained, measured, and with a generator on the tokens of each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common.config import find_file, first_difference, read_yaml, to_tree
from common.console import Clock, banner, duration, say
from common.launch import processes
from evaluator.evaluator import Evaluator
from evaluator.image_files import open_images
from evaluator.networks import comparing_metrics, local_networks
from evaluator.reference import image_reference
from jobs.comparison_table import LN2, TRAINED_HERE, draw_comparison, markdown_table
from jobs.fit_codebook import fit_codebook
from jobs.measuring import ReconstructionMeasurement, SourceImages, pass_through
from jobs.options.compare_tokenizers import SMALL, CompareOptions
from jobs.options.fit_codebook import FitOptions
from jobs.options.pretokenize import PretokenizeOptions
from jobs.options.sample_images import SampleOptions
from jobs.pretokenize import pretokenize
from jobs.recipe_runs import run_recipe
from jobs.sampling import draw_samples
from jobs.teacher_training import write_teacher
from modeling.pipeline import load_tokenizer
from modeling.pretrained.model_names import shown_name
from modeling.tokenizers.base import Tokenizer
from storage.files import write_json, write_text
from storage.json_files import read_json, try_json
from storage.locks import reserved_folder
from storage.weights import weight_hash
from training.generator_settings import GeneratorRun
from training.tokenizer_settings import TokenizerRun

SMALL += ["titok_vq", "titok_fsq"]  # recipes of configs/compare in this order: vqkd_pixels starts from vqkd

# What a table may be continued with: further tokenizers, and options that change no number.
FREE = ("tokenizers", "train", "output", "batch_size", "num_workers", "inception_weights", "lpips_weights")
ADVICE = "choose another output"


def teacher_file(
    options: CompareOptions, section: Mapping[str, Any], data: Mapping[str, Any]
) -> tuple[str | None, str]:
    """Weights of a teacher and its name in the table; trains it unless its section or the options name a file."""
    name = section["name"]
    if section.get("weights") or options.teacher_weights != TRAINED_HERE:
        return section.get("weights") or options.teacher_weights, name
    path = options.folder / "teachers" / f"{name}-{options.teacher_steps}.safetensors"
    if not path.is_file():
        write_teacher(path, section, data, options.teacher_steps)
    accuracy = read_json(path.with_suffix(".json"), accuracy=(int, float))["accuracy"]
    return str(path), f"{name}, {TRAINED_HERE} ({accuracy:.0%} right)"


def train(options: CompareOptions, recipe: str) -> dict[str, Any]:
    """Train the tokenizer of a recipe, unless its folder has it; returns notes on the training for the table."""
    tree = read_yaml(recipe)
    folder, section = options.run_folder(Path(recipe).stem), dict(tree.get("tokenizer") or {})
    overrides, notes = {"training.max_steps": options.steps}, {}
    teacher = tree.get("teacher") if isinstance(tree.get("teacher"), Mapping) else section.get("teacher")
    if teacher:
        weights, notes["teacher"] = teacher_file(options, teacher, tree["data"])
        if tree.get("teacher"):
            overrides["teacher.weights"] = weights
    if tree.get("initialize"):  # codes of a first stage
        reference = shown_name(tree["initialize"])
        start = options.run_folder(Path(reference).name)
        if section.get("name") == "cluster" and not Path(reference).exists():
            fit(options, start, tree, {**section["teacher"], "weights": weights})
        if start.exists():  # made by this comparison; else the recipe's own
            overrides["initialize"] = start
            notes |= read_json(start / "notes.json")
    run_recipe("train_titok.py", TokenizerRun, recipe, folder, overrides)
    notes["training_steps"] = read_yaml(folder / "config.yaml")["training"]["max_steps"]
    write_json(folder / "notes.json", notes)
    return notes


def fit(options: CompareOptions, folder: Path, tree: Mapping[str, Any], teacher: Mapping[str, Any]) -> None:
    """Fit the codes that a recipe of a cluster tokenizer starts from, unless the folder has them."""
    section = tree["tokenizer"]
    fit_codebook(
        FitOptions(
            teacher={key: value for key, value in teacher.items() if value is not None},
            data=tree["data"]["train"],
            output=str(folder),
            image_size=section["image_size"],
            codebook_size=section["quantizer"]["codebook_size"],
            metric="cosine" if section["quantizer"].get("use_l2_norm") else "euclidean",
            iterations=options.fit_iterations,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
        )
    )
    write_json(folder / "notes.json", {"fit_iterations": options.fit_iterations})


def images_of(section: Mapping[str, Any], tokenizer: Tokenizer) -> SourceImages:
    """The images of a data section at the size of a tokenizer, without random augmentation."""
    return SourceImages(section, split="train", config={}, image_size=tokenizer.image_size)


def measure(
    tokenizer: Tokenizer, options: CompareOptions, networks: Mapping[str, Any], device: torch.device
) -> dict[str, float]:
    """Measure reconstructions of the held-out images, and the use of the codebook."""
    stream, metrics = images_of(options.data.validation, tokenizer), comparing_metrics(networks)
    shared = {"networks": networks, "num_images": stream.count, "device": device}
    evaluator = Evaluator(metrics=metrics, protocol="tokenizer", **shared)
    measurement = ReconstructionMeasurement(evaluator, codebook_size=tokenizer.codebook_size, device=device)
    measurement.reconstruct(tokenizer, stream, options.batch_size)
    return {"held_out_images": stream.count, **measurement.outcome().with_warnings()}


def generate(options: CompareOptions, name: str, reference: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Tokenize all images and train a generator on the tokens; returns how well it predicts held-out ones."""
    overrides = {"data.tokenizer": reference, "training.max_steps": options.gpt_steps}
    for split, key in (("train", "data.tokens"), ("validation", "data.validation")):
        overrides[key] = options.folder / "tokens" / f"{name}.{split}.tokens"
        pretokenize(
            PretokenizeOptions(
                tokenizer=reference,
                output=str(overrides[key]),
                data=getattr(options.data, split),
                batch_size=options.batch_size,
                num_workers=options.num_workers,
            )
        )
    folder = options.folder / "gpt" / name
    run_recipe("train_rar.py", GeneratorRun, options.gpt, folder, overrides)
    loss = read_json(folder / "metrics.json", loss=(int, float))["loss"]
    bits = loss * tokenizer.num_tokens / LN2  # nats per token to bits per image
    return {"gpt_nats_per_token": loss, "gpt_bits_per_image": bits, "gpt": str(folder)}


def sample(
    options: CompareOptions,
    name: str,
    reference: str,
    tokenizer: Tokenizer,
    networks: Mapping[str, Any],
    device: torch.device,
) -> dict[str, float]:
    """Draw samples; returns their gFID to the training images, {} without Inception weights."""
    folder = options.folder / "samples" / name
    drawn = SampleOptions(
        generator=str(options.folder / "gpt" / name),
        tokenizer=reference,
        output=str(folder),
        num_samples=options.num_samples,
        seed=options.seed,
        batch_size=options.batch_size,
        png=False,
    )
    draw_samples(drawn, device)
    if "inception" not in networks:
        return {}
    samples, images = open_images(folder), images_of(options.data.train, tokenizer)
    shared = {"networks": networks, "num_images": samples.count, "device": device}
    evaluator = Evaluator(metrics=["gfid"], reference=image_reference(images, "training"), **shared)
    pass_through(evaluator.update, samples, options.batch_size, "samples")
    pass_through(evaluator.update_reference, images, options.batch_size, "reference")
    return evaluator.outcome().with_warnings()


def row(
    options: CompareOptions, name: str, reference: str, notes: Mapping[str, Any], networks: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The row of a tokenizer; None for one that does not predict pixels (a first stage)."""
    with processes() as device:
        tokenizer = load_tokenizer(reference, device)
        if not tokenizer.predicts_pixels:
            return None
        if tokenizer.needs_text:
            raise ValueError(f"{reference} decodes with captions, which images alone do not have")
        about = {
            "name": name,
            "tokenizer": reference,
            "weight_hash": weight_hash(tokenizer),
            "parameters": sum(p.numel() for p in tokenizer.parameters()),
            "tokens": tokenizer.num_tokens,
            "codebook_size": tokenizer.codebook_size,
            "bits_per_image": tokenizer.bits_per_image,
            **notes,
        }
        values = measure(tokenizer, options, networks, device)
    # Training runs in processes of its own, with no process group open here.
    if tokenizer.is_discrete:
        values |= generate(options, name, reference, tokenizer)
        with processes() as device:
            values |= sample(options, name, reference, tokenizer, networks, device)
    return {**about, **values}


def earlier_rows(options: CompareOptions) -> dict[str, dict[str, Any]]:
    """Rows that the folder's table has, by name; raises ValueError if they were made with other settings."""
    found = try_json(options.folder / "comparison.json", settings=dict, rows=list)
    if not found:
        return {}
    old, new = (
        {key: value for key, value in tree.items() if key not in FREE}
        for tree in (found["settings"], to_tree(options))
    )
    if difference := first_difference(old, new, "settings"):
        raise ValueError(f"{options.folder} holds a comparison with other settings ({difference}); {ADVICE}")
    return {values["name"]: values for values in found["rows"]}


def write_table(options: CompareOptions, rows: list[dict[str, Any]]) -> None:
    """Write the rows as JSON, Markdown and a picture."""
    write_json(options.folder / "comparison.json", {"settings": to_tree(options), "rows": rows})
    write_text(options.folder / "comparison.md", markdown_table(rows))
    draw_comparison(rows, options.folder / "comparison.png")


def compare_tokenizers(options: CompareOptions) -> None:
    """Train, measure and generate for one tokenizer after the other, and write the table."""
    with reserved_folder(options.folder):
        _compare(options)


def _compare(options: CompareOptions) -> None:
    clock, rows = Clock(), earlier_rows(options)
    sources = [(path, None) for path in options.train] + [(None, name) for name in options.tokenizers]
    for path in (*options.train, options.gpt):
        find_file(path, "recipe")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = local_networks(options.inception_weights, options.lpips_weights, device)
    for number, (name, (recipe, reference)) in enumerate(zip(options.names, sources, strict=True), start=1):
        title = f"[{number}/{len(sources)}] {name}"
        banner(title, {"from": recipe or reference, "output": options.folder})
        notes = train(options, recipe) if recipe else {}
        values = row(options, name, reference or str(options.run_folder(name)), notes, networks)
        if values is None:
            say(f"{name} does not predict pixels: a first stage gets no row")
            continue
        # In the order of the options, then those of earlier calls.
        rows = {key: (rows | {name: values})[key] for key in (*options.names, *rows) if key in {*rows, name}}
        # After every tokenizer: an interrupted comparison has the rows so far.
        write_table(options, list(rows.values()))
    if not rows:
        raise ValueError("none of the tokenizers predicts pixels; there is nothing to compare")
    say(f"\n{markdown_table(list(rows.values()))}")
    files = f"{options.folder}/comparison.md, .json and .png"
    say(f"{len(sources)} tokenizers in {duration(clock.lap())}; see {files}")
