"""Print what a training run needs on paper: memory per GPU, checkpoint, time, and what storage has to deliver.

    python scripts/plan.py config=configs/rar/imagenet_xl.yaml gpus=8 gpu=a100-80 precision=bf16 sharding=full

Takes the arguments of train_titok.py or train_rar.py, and the options below. Activations are measured on fake tensors,
so no GPU, no weights and no data are needed; docs/scaling.md says what is arithmetic and what was checked.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import describe, print_lines
from jobs.options.plan import PlanOptions


def main() -> None:
    """Print the estimate, or one line that says what is wrong with the arguments."""
    options = "\n".join(describe(PlanOptions))
    print_lines("jobs.plan:plan", f"{__doc__.strip()}\n\nOptions:\n{options}")


if __name__ == "__main__":
    main()
