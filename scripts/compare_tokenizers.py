"""Compare tokenizers in one table: how well they reconstruct, and how well a generator predicts their tokens.

    python scripts/compare_tokenizers.py
    python scripts/compare_tokenizers.py tokenizers=[openmoji-titok,runs/mine] output=runs/two
    python scripts/compare_tokenizers.py train=[configs/compare/cvq.yaml] steps=1000 gpt_steps=2000 output=runs/cvq
    python scripts/compare_tokenizers.py tokenizers=[titok-b64,maskgit-vqgan] output=runs/imagenet \\
        data.train.name=image_folder data.train.path=train data.validation.name=image_folder data.validation.path=val

Without `tokenizers` and `train` these are the small recipes of configs/compare. Each tokenizer is trained if it is a
recipe, measured on held-out images, and used to make tokens of all images; a GPT of the same shape then learns the
tokens of each for the same number of steps, and is measured on held-out ones. Files of networks that measure (rFID,
gFID: Inception; LPIPS) are never downloaded: without them a column holds "-".

Writes comparison.md, comparison.json and comparison.png. An interrupted comparison goes on where it stopped; what is
done already is not repeated.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.compare_tokenizers import CompareOptions, compare_tokenizers


def main(options: CompareOptions) -> None:
    """Train, measure, generate, one tokenizer after the other; then the table."""
    compare_tokenizers(options)


if __name__ == "__main__":
    run_script(main, CompareOptions, __doc__)
