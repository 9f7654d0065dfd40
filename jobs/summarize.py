"""The results of a tokenizer run, a generator run and their samples in one folder."""

import shutil
from pathlib import Path

from common.config import find_file
from common.console import say
from jobs.options.summarize import SummaryOptions
from modeling.pipeline import load_tokenizer
from storage.files import write_json
from storage.json_files import read_json
from storage.locks import reserved_folder
from training.curves import draw_curves

_NUMBER = (int, float)
_MEASURED = ("psnr", "images", "codebook_usage")


def summarize(options: SummaryOptions) -> None:
    """Copy pictures, draw curves, merge and print numbers."""
    with reserved_folder(options.output):
        _collect(options)


def _collect(options: SummaryOptions) -> None:
    tokenizer_run, generator_run, samples = (
        find_file(getattr(options, key), "folder") for key in ("tokenizer", "generator", "samples")
    )
    output = Path(options.output)
    if any(output.samefile(folder) for folder in (tokenizer_run, generator_run, samples)):
        raise ValueError(f"output={output} holds one of the results; name a folder of its own")
    shutil.copyfile(tokenizer_run / "reconstructions.png", output / "reconstructions.png")
    shutil.copyfile(samples / "samples.png", output / "samples.png")
    draw_curves({"tokenizer": tokenizer_run, "generator": generator_run}, output / "curves.png")
    tokenizer = load_tokenizer(tokenizer_run)
    facts = read_json(samples / "samples.json", seconds_per_image=_NUMBER)
    metrics = {
        "tokenizer": read_json(tokenizer_run / "metrics.json", **dict.fromkeys(_MEASURED, _NUMBER)),
        "generator": read_json(generator_run / "metrics.json", loss=_NUMBER),
        "tokens_per_image": tokenizer.num_tokens,
        "bits_per_image": tokenizer.bits_per_image,
        "seconds_per_sampled_image": facts["seconds_per_image"],
    }
    write_json(output / "metrics.json", metrics)
    measured, loss = metrics["tokenizer"], metrics["generator"]["loss"]
    size = f"{tokenizer.num_tokens} tokens and {tokenizer.bits_per_image:.0f} bits per image"
    each = f"{facts['seconds_per_image']:.3f} s per sampled image"
    quality = f"PSNR {measured['psnr']:.2f} dB on {measured['images']:.0f} held-out images"
    say(f"tokenizer   {tokenizer_run}: {quality},")
    say(f"            codebook usage {measured['codebook_usage']:.0%}, {size}")
    say(f"generator   {generator_run}: {loss:.2f} nats per held-out token, {each}")
    say(f"pictures    {output}/reconstructions.png, samples.png (a row per class), curves.png")
    say(f"numbers     {output}/metrics.json")
