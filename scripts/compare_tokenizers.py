"""Compare tokenizers in one table: how well they reconstruct, and how well a generator predicts their tokens.

    python scripts/compare_tokenizers.py
    python scripts/compare_tokenizers.py tokenizers=[openmoji-titok,runs/mine] output=runs/two
    python scripts/compare_tokenizers.py train=[configs/compare/cvq.yaml] steps=1000 gpt_steps=2000 output=runs/cvq
    python scripts/compare_tokenizers.py tokenizers=[titok-b64,maskgit-vqgan] output=runs/imagenet \\
        data.train.name=image_folder data.train.path=train data.validation.name=image_folder data.validation.path=val

The default is to compare the small recipes of configs/compare. A recipe is trained first. Every tokenizer is measured
on held-out images and used to tokenize all images; then a GPT of the same shape learns the tokens of each for the same
number of steps and is measured on held-out tokens. The weights behind rFID and gFID (Inception) and LPIPS are not
downloaded: without them a column holds "-".

Writes comparison.md, comparison.json and comparison.png. An interrupted comparison continues where it stopped: it keeps
finished trainings, tokens, samples and rows, and measures again. Further tokenizers join the table of a folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.compare_tokenizers import CompareOptions

if __name__ == "__main__":
    run_script("jobs.compare_tokenizers:compare_tokenizers", CompareOptions, __doc__)
