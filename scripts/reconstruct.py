"""Reconstruct images with a tokenizer: pictures side by side, tokens and PSNR.

    python scripts/reconstruct.py tokenizer=runs/titok input=photo.jpg output=reconstructions
    python scripts/reconstruct.py tokenizer=runs/titok input=folder/of/images output=reconstructions
    python scripts/reconstruct.py tokenizer=runs/titok split=validation max_images=64 output=reconstructions
    python scripts/reconstruct.py tokenizer=runs/vqgan input=folder original_size=true rfid=true output=reconstructions
    python scripts/reconstruct.py tokenizer=magvit2-256 input='val-{00..49}.tar' resize=bilinear output=reconstructions

Writes one PNG per image (left the image, right its reconstruction), reconstructions.png with up to 64 of them, each
above its reconstruction, and reconstructions.json with PSNR and tokens of every image (a continuous tokenizer:
latents.npy). Images of another size are resized by their shorter side and cropped in the centre; with original_size
they stay as they are, one at a time, padded with grey to a multiple of the tokenizer's downscale factor and cropped
back. Folders are read at any depth and the output keeps their structure; tar shards get a folder each.
Earlier results in the folder are replaced, and an interrupted job begins anew.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.reconstruct import ReconstructOptions

if __name__ == "__main__":
    run_script("jobs.reconstruct:reconstruct", ReconstructOptions, __doc__)
