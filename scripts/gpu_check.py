"""The checks that need a GPU, in under ten minutes on one card: a JSON, a page, and exit code 1 if something is wrong.

    python scripts/gpu_check.py output=runs/gpu_check
    python scripts/gpu_check.py device=cpu size=tiny seconds=60 output=/tmp/gpu_check

Weights are random, so nothing is downloaded. Measured are: bf16, fp16, torch.compile and flash attention against
float32; a training step of a recipe of every family; sampling, tokenizing and the features of FID in images per second;
peak memory. Every section has a share of the time; what does not fit into it is left out and named.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.gpu_check import GPUCheckOptions

if __name__ == "__main__":
    run_script("jobs.gpu_check:gpu_check", GPUCheckOptions, __doc__)
