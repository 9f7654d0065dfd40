"""The table and the picture of a comparison of tokenizers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TRAINED_HERE = "trained here"  # stands in the name of a teacher that learnt the labels of the images at hand
LN2 = 0.6931471805599453
COLUMNS = {
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
    """A metric, also if its name carries the number of images (rfid_397)."""
    return next((v for k, v in values.items() if k == metric or k.startswith(f"{metric}_")), None)


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table: a row per tokenizer, "-" for what was not measured.

    Args:
        rows: values by name, as `comparison.json` of scripts/compare_tokenizers.py holds them; codebook_usage is a
            share in 0..1.
    """
    heads = ["Tokenizer", "Tokens × bits", *(title for title, _ in COLUMNS.values())]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for values in rows:
        size = values["codebook_size"]
        bits = "-" if size is None else f"{values['bits_per_image'] / values['tokens']:.1f}"
        cells = [values["name"] + (" *" if TRAINED_HERE in values.get("teacher", "") else "")]
        cells.append(f"{values['tokens']} × {bits}")
        for metric, (_, digits) in COLUMNS.items():
            value = _found(values, metric)
            text = "-" if value is None else f"{value:.0%}" if digits is None else f"{value:.{digits}f}"
            cells.append(text)
        lines.append(f"| {' | '.join(cells)} |")
    if any(TRAINED_HERE in values.get("teacher", "") for values in rows):
        lines.append("\n\\* its teacher learnt the labels of these images first")
    return "\n".join(lines) + "\n"


def draw_comparison(rows: Sequence[Mapping[str, Any]], output: Path) -> None:
    """PSNR over the bits that the generator needs, and its loss beside that of even guessing, as a PNG.

    Tokenizers without a generator are left out; numbers beside the points are those beside the names.

    Args:
        rows: see `markdown_table`.
        output: PNG to write.
    """
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    rows = [values for values in rows if values.get("gpt_bits_per_image") is not None]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, values in enumerate(rows, start=1):  # names would cover each other
        point = (values["gpt_bits_per_image"], values["psnr"])
        left.scatter(*point, s=30)
        left.annotate(str(number), point, xytext=(4, 4), textcoords="offset points", fontsize=9)
    left.set_xlabel("bits per held-out image under the GPT")
    left.set_ylabel("PSNR of reconstructions, dB")
    left.margins(0.1, 0.1)
    places = range(len(rows))
    even = [values["bits_per_image"] / values["tokens"] * LN2 for values in rows]
    right.barh(places, even, color="0.9", label="even guessing: ln(codes)")
    right.barh(places, [v["gpt_nats_per_token"] for v in rows], height=0.5, label="GPT, held out")
    right.set_yticks(
        places, [f"{values['name']}  {number + 1}" for number, values in enumerate(rows)], fontsize=8
    )
    right.invert_yaxis()
    right.set_xlabel("nats per token")
    right.legend(fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(output, dpi=110)
