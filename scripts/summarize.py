"""Collect the results of a tokenizer run, a generator run and their samples in one folder.

    python scripts/summarize.py tokenizer=runs/titok generator=runs/rar samples=runs/samples output=runs/summary

Writes reconstructions.png, samples.png (a row per class), curves.png and metrics.json, and prints what they hold.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.summarize import SummaryOptions

if __name__ == "__main__":
    run_script("jobs.summarize:summarize", SummaryOptions, __doc__)
