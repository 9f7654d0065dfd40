"""Turn the images of a data set into tokens, once, so that a generator can train on them.

    python scripts/pretokenize.py tokenizer=runs/titok output=runs/titok/train.tokens
    python scripts/pretokenize.py tokenizer=runs/titok split=validation output=runs/titok/validation.tokens
    python scripts/pretokenize.py tokenizer=runs/vqgan data.name=image_folder data.path=imagenet/train \\
        crops=ten_crop output=imagenet.tokens
    torchrun --nproc_per_node 8 scripts/pretokenize.py ...

Without a data section, the images are those of the tokenizer's run. Random augmentation is off; `crops` says how many
versions of an image are kept: plain (one), flip (also its mirror image), or ten_crop (from the image at 1.1 times the
size: four corners and centre, and their mirror images). An interrupted job goes on where it stopped, and doing it
again does nothing.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.pretokenize import PretokenizeOptions, pretokenize


def main(options: PretokenizeOptions) -> None:
    """Tokenize what is missing, name the file, and say what is in it."""
    pretokenize(options)


if __name__ == "__main__":
    run_script(main, PretokenizeOptions, __doc__)
