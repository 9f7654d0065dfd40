"""Print the options that the arguments of a training program describe, and where every value comes from.

    python scripts/show_config.py config=configs/rar/imagenet_xl.yaml training.max_steps=5

Takes the arguments of train_titok.py, train_rar.py or scripts/fit_codebook.py, and starts nothing. The comment behind a
value names its origin: a file (the recipe or its base), the command line, or "default". Options of models and data
sets that are not set are not listed: their defaults are those of the class. The output can be used as config=FILE.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import print_lines
from jobs.show_config import show_config


def main() -> None:
    """Print the options, or one line that says what is wrong with the arguments."""
    print_lines(show_config, __doc__.strip())


if __name__ == "__main__":
    main()
