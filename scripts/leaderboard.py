"""Collect result files into one table that compares only what may be compared.

    python scripts/leaderboard.py 'results=[runs/a.json,runs/b.json]' output=runs/leaderboard
    python scripts/leaderboard.py results=[runs] rank=psnr

Takes results of scripts/evaluate.py, scripts/reproduce.py and scripts/compare_tokenizers.py. Rows stand in one group if
resolution, number of images, crop, reference and its hash, protocol, and hash and precision of every network that both
have are equal; a group says in one line per difference why it is not the same as another one. A model has no place by a
metric in whose space it was trained, if its record says so.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.leaderboard import LeaderboardOptions

if __name__ == "__main__":
    run_script("jobs.leaderboard:leaderboard", LeaderboardOptions, __doc__)
