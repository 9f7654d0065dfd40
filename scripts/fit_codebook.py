"""Cluster the features of a frozen network into the codes of a tokenizer (Cluster, arXiv:2411.04406).

    python scripts/fit_codebook.py teacher.name=vit_base_patch16_224.dino teacher.input_size=256 \\
        data.name=image_folder data.path=imagenet/train output=runs/cluster
    torchrun --nproc_per_node 8 scripts/fit_codebook.py ...

Runs k-means over the features of all images. Features are not stored but computed again in each of the `iterations`
passes. An interrupted job continues after its last complete iteration, on any number of processes; running a finished
one again does nothing. The result is a run folder: tokenize with it, or train a pixel decoder on its codes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.fit_codebook import FitOptions

if __name__ == "__main__":
    run_script("jobs.fit_codebook:fit_codebook", FitOptions, __doc__)
