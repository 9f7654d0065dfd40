"""Cut photographs that come with Python packages into a folder of pictures, to try training on own images.

    pip install --no-deps --target runs/packages scikit-image scikit-learn matplotlib
    python scripts/photo_crops.py packages=runs/packages output=runs/photos

The packages need not work in this environment: only their pictures are read. Places and sizes are fixed by the seed;
licences.md lists the photographs with their licences, all of them free.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.photo_crops import PhotoCropsOptions

if __name__ == "__main__":
    run_script("jobs.photo_crops:photo_crops", PhotoCropsOptions, __doc__)
