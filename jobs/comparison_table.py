"""The table and the picture of a comparison of tokenizers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TRAINED_HERE = "trained here"  # part of the name of a teacher that learnt the labels of the compared images
LN2 = 0.6931471805599453  # nats per bit
COLUMNS = {  # metric: heading and digits, None for per cent
    "rfid": ("rFID", 2),
    "psnr": ("PSNR", 2),
    "ssim": ("SSIM", 3),
    "lpips": ("LPIPS", 3),
    "codebook_usage": ("Usage", None),
    "codebook_perplexity": ("Perplexity", 0),
    "gpt_nats_per_token": ("GPT, nats per token", 2),
    "gpt_bits_per_image": ("GPT, bits per image", 0),
    "gfid": ("gFID", 2),
}


def _found(values: Mapping[str, Any], metric: str) -> Any:
    # rfid_397 is the rFID of 397 images.
    return next((v for k, v in values.items() if k == metric or k.startswith(f"{metric}_")), None)


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of the rows of `comparison.json`, "-" for what was not measured."""
    heads = ["Tokenizer", "Tokens × bits", *(title for title, _ in COLUMNS.values())]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for values in rows:
        size = values["codebook_size"]
        bits = "-" if size is None else f"{values['bits_per_image'] / values['tokens']:.1f}"
        cells = [values["name"] + (" *" if TRAINED_HERE in values.get("teacher", "") else "")]
        cells.append(f"{values['tokens']} × {bits}")
        for metric, (_, digits) in COLUMNS.items():
            value = _found(values, metric)
            cells.append(
                "-" if value is None else f"{value:.0%}" if digits is None else f"{value:.{digits}f}"
            )
        lines.append(f"| {' | '.join(cells)} |")
    if any(TRAINED_HERE in values.get("teacher", "") for values in rows):
        lines.append("\n\\* its teacher learnt the labels of these images first")
    return "\n".join(lines) + "\n"


def draw_comparison(rows: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Plot PSNR over the bits that the generator needs, and its loss beside that of even guessing, as a PNG.

    Omits tokenizers without a generator. Numbers at the points refer to the names on the right.
    """
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    rows = [values for values in rows if values.get("gpt_bits_per_image") is not None]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, values in enumerate(rows, start=1):  # numbers: names would overlap
        point = (values["gpt_bits_per_image"], values["psnr"])
        left.scatter(*point, s=30)
        left.annotate(str(number), point, xytext=(4, 4), textcoords="offset points", fontsize=9)
    left.set_xlabel("bits per held-out image under the GPT")
    left.set_ylabel("PSNR of reconstructions, dB")
    left.margins(0.1, 0.1)
    places = range(len(rows))
    even = [values["bits_per_image"] / values["tokens"] * LN2 for values in rows]  # ln(codebook_size)
    right.barh(places, even, color="0.9", label="even guessing: ln(codes)")
    right.barh(places, [v["gpt_nats_per_token"] for v in rows], height=0.5, label="GPT, held out")
    names = [f"{values['name']}  {number}" for number, values in enumerate(rows, start=1)]
    right.set_yticks(places, names, fontsize=8)
    right.invert_yaxis()  # the first row on top
    right.set_xlabel("nats per token")
    right.legend(fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(output, dpi=110)
