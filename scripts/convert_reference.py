"""Collect published statistics of the feature spaces of FDr6 in one reference file for scripts/evaluate.py.

    python scripts/convert_reference.py input=paper_ref_stats.pkl output=imagenet256.npz
    python scripts/convert_reference.py input=FOLDER output=imagenet256.npz

A pickle is a program; this one is read as data: arrays of numbers are taken from it, and a file that calls anything
else is refused without running it. A folder holds .npz files under their published names (docs/evaluation.md).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.convert_reference import ConvertReferenceOptions

if __name__ == "__main__":
    run_script("jobs.convert_reference:convert_reference", ConvertReferenceOptions, __doc__)
