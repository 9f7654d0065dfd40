"""Train a tokenizer and a generator on your own images, and draw new ones.

    python scripts/own_images.py images=photos
    python scripts/own_images.py images=photos output=runs/mine minutes=60 plan=true

Looks at the images, holds some out, chooses recipe and number of steps for this device and this number of images
(docs/own_images.md), and says how long it will take. Then the ordinary programs train the tokenizer, turn the images
into tokens, train the generator and draw samples; their command lines are printed, and what was chosen lies as YAML
files in the output folder. Running the same command again resumes. report.md has figures and pictures.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.own_images import OwnImagesOptions

if __name__ == "__main__":
    run_script("jobs.own_images:own_images", OwnImagesOptions, __doc__)
