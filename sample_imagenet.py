"""Sample class-balanced images from a generator: PNG files, one NPZ, and a picture with a row per class.

    python sample_imagenet.py generator=runs/rar output=samples num_samples=80
    torchrun --nproc_per_node 8 sample_imagenet.py generator=runs/rar output=samples png=false

Sample i has class classes[i % len(classes)], so that the first n samples are as balanced as possible for any n. It
depends on the seed and i only, not on the batch size or the number of processes. An interrupted job continues where it
stopped. The NPZ holds arr_0 uint8 [n, H, W, 3], labels [n] (also as arr_1) and tokens [n, N].
"""

from common.config import run_script
from jobs.options.sample_images import SampleOptions


def main(options: SampleOptions) -> None:
    """Draw on one process, or on all that a launcher started."""
    from jobs.sampling import sample_images  # here: help and errors are quick without torch

    sample_images(options)


if __name__ == "__main__":
    run_script(main, SampleOptions, __doc__)
