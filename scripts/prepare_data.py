"""Pack images as you have them into the tar shards that the recipes read.

    python scripts/prepare_data.py input=downloads output=imagenet
    python scripts/prepare_data.py input=kaggle/ILSVRC output=imagenet
    python scripts/prepare_data.py input='imagenet-1k/data' output=imagenet workers=32
    python scripts/prepare_data.py input=my_images output=shards name=mine
    python scripts/prepare_data.py input=downloads output=imagenet verify=true

The input is looked through for ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar with the devkit or a list of labels;
for train and val folders, also as Kaggle unpacks them and with a flat val folder; for parquet files as the Hub serves
them. A folder of other images becomes training shards. The images' bytes are copied as they are. An interrupted job
continues with the shards that are missing; running a finished one again does nothing. <name>-train.json and
<name>-val.json describe the shards: counts, SHA-256, classes, and all images that are damaged or odd.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.prepare_data import PrepareOptions

if __name__ == "__main__":
    run_script("jobs.prepare_data:prepare_data", PrepareOptions, __doc__)
