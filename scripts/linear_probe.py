"""Linear probe of a tokenizer: how well a linear classifier tells classes from its latents and from its codes.

    python scripts/linear_probe.py tokenizer=assets/models/titok_openmoji output=runs/probe.json
    python scripts/linear_probe.py tokenizer=runs/titok data.train.name=image_folder data.train.path=imagenet/train \\
        data.validation.name=image_folder data.validation.path=imagenet/val 'decays=[0.001,0.01]' output=runs/probe.json

Features are means over the tokens of an image, before the bottleneck (latents) and behind it (quantized). The
classifier is the exact optimum of a convex problem, so that a probe has no seed. An interrupted job begins anew.
A probe says what is easy to read from tokens, and is a poor judge of how well they reconstruct or generate.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.linear_probe import ProbeOptions

if __name__ == "__main__":
    run_script("jobs.linear_probe:probe_tokenizer", ProbeOptions, __doc__)
