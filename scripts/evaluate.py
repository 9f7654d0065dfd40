"""FID, sFID, Inception Score, KID, precision and recall, FDr6, PSNR, SSIM, LPIPS of samples or reconstructions.

    python scripts/evaluate.py samples=runs/samples reference=VIRTUAL_imagenet256_labeled.npz output=result.json
    python scripts/evaluate.py samples=a.npz reference=b 'metrics=[fid,kid]' protocol=torch-fidelity
    python scripts/evaluate.py samples=val crop=shorter_edge tokenizer=titok-l32 output=titok_l32.json
    python scripts/evaluate.py samples=val crop=adm image_size=256 make_ref=val256.npz reference_set=validation
    torchrun --nproc_per_node 8 scripts/evaluate.py samples=runs/samples reference=ref.npz

Images are a folder (any depth), an .npz with arr_0 or an .npy, tar shards ('val-{00..49}.tar'), or the output folder of
sample_imagenet.py. An interrupted job begins anew; with features=FOLDER it goes on where it was. With a tokenizer they
are reconstructed, and the reconstructions are compared with them. The result says how it came about; docs/evaluation.md
says which number to report.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.evaluate import EvaluateOptions

if __name__ == "__main__":
    run_script("jobs.evaluate:evaluate", EvaluateOptions, __doc__)
