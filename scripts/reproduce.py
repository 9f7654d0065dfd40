"""Measure a released model as its authors did, and compare the result with the published one.

    python scripts/reproduce.py model=rar-b reference=VIRTUAL_imagenet256_labeled.npz output=runs/reproduce/rar_b
    python scripts/reproduce.py model=titok-l32 images='val-{000000..000049}.tar' output=runs/reproduce/titok_l32
    python scripts/reproduce.py model=magvit2-128 images=val image_size=256 output=runs/reproduce/magvit2_128_at_256
    torchrun --nproc_per_node 8 scripts/reproduce.py model=rar-xl reference=ref.npz output=runs/reproduce/rar_xl

A generator draws class-balanced samples with its published settings into output/samples and is measured against the
reference (adm protocol). A tokenizer reconstructs the validation images (shorter edge to its size, bicubic, centre
crop; LlamaGen: ADM's crop; Open-MAGVIT2 and IBQ: bilinear) and is compared with these in one pass, as its authors did
(tokenizer protocol; Open-MAGVIT2 and IBQ: PSNR, SSIM and rFID of their own tool); TA-TiTok reads the caption of each
image's class. Missing files are listed before any work starts. After an interruption, a generator draws the samples
that are missing and is measured anew; a tokenizer begins anew. A finished job is not repeated. The numbers and the
protocol are written to output/result.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.reproduce import ReproduceOptions

if __name__ == "__main__":
    run_script("jobs.reproduce:reproduce", ReproduceOptions, __doc__)
