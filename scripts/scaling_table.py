"""Replace the table of docs/scaling.md: memory and time of every ImageNet recipe on paper.

    python scripts/scaling_table.py
    python scripts/scaling_table.py 'recipes=[rar/imagenet_xl.yaml]'      one row

Takes about ten seconds of a CPU core per recipe; scripts/plan.py prints all figures of one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.scaling_table import ScalingTableOptions

if __name__ == "__main__":
    run_script("jobs.scaling_table:scaling_table", ScalingTableOptions, __doc__)
