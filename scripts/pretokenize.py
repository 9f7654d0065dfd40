"""Tokenize the images of a data set into a token file that a generator can train on.

    python scripts/pretokenize.py tokenizer=runs/titok output=runs/titok/train.tokens
    python scripts/pretokenize.py tokenizer=runs/titok split=validation output=runs/titok/validation.tokens
    python scripts/pretokenize.py tokenizer=runs/vqgan data.name=image_folder data.path=imagenet/train \\
        crops=ten_crop output=imagenet.tokens
    torchrun --nproc_per_node 8 scripts/pretokenize.py ...

Without a data section, the images are those of the tokenizer's run. Random augmentation is off; `crops` selects the
versions of an image that are stored: plain (one), flip (also its mirror image), or ten_crop (from the image at 1.1
times the size: four corners and centre, and their mirror images). An interrupted job continues where it stopped;
running a finished one again does nothing.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.pretokenize import PretokenizeOptions

if __name__ == "__main__":
    run_script("jobs.pretokenize:pretokenize", PretokenizeOptions, __doc__)
