"""Show what a data set holds, as training, tokenizing and evaluation read it.

    python scripts/inspect_data.py data=images/train output=runs/inspected
    python scripts/inspect_data.py 'data=imagenet/imagenet-train-{000000..000320}.tar' max_images=10000
    python scripts/inspect_data.py config=configs/titok/images_gpu.yaml split=validation

Images, classes, sizes, pixel formats, transparency, orientations and captions are counted; what is left out or cannot
be read is named with its reason, and equal pictures are found by their pixels. `data` is a folder of images, with a
folder per class or without, tar shards as a brace pattern or a folder of them, parquet files, a pattern with * for
image files, or a data section (data.name=... data.path=...). A recipe (config=...) stands for its data section. With
`output`, inspection.md, inspection.json and contact_sheet.png are written there.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.inspect_data import InspectOptions

if __name__ == "__main__":
    run_script("jobs.inspect_data:inspect_data", InspectOptions, __doc__)
