"""Print what a training run needs on paper: memory per GPU, checkpoint, time, and what storage has to deliver.

    python scripts/plan.py config=configs/rar/imagenet_xl.yaml gpus=8 gpu=a100-80 precision=bf16 sharding=full

Takes the arguments of train_titok.py or train_rar.py, and the options below. Activations are measured on fake tensors,
so no GPU, no weights and no data are needed; docs/scaling.md says what is arithmetic and what was checked.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import describe, one_line
from common.streams import secure_streams
from jobs.plan import PlanOptions, plan


def main() -> None:
    """Print the estimate, or one line that says what is wrong with the arguments."""
    arguments = sys.argv[1:]
    secure_streams(quiet=True)
    if not arguments or any(a in ("-h", "--help", "help") for a in arguments):
        print(f"{__doc__.strip()}\n\nOptions:")
        print("\n".join(describe(PlanOptions)))
        return
    try:
        print("\n".join(plan(arguments)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    main()
