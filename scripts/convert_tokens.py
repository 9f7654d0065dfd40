"""Convert token files from and to the formats of other programs.

    python scripts/convert_tokens.py input=maskgitvq.jsonl output=imagenet.tokens crops=10 codebook_size=1024 \\
        tokenizer=maskgit-vqgan
    python scripts/convert_tokens.py input=imagenet.tokens output=imagenet.jsonl
    python scripts/convert_tokens.py input=llamagen_codes output=imagenet.tokens codebook_size=16384
    python scripts/convert_tokens.py input=imagenet.tokens output=llamagen_codes

The names of input and output select the conversion: .tokens is a token file, .jsonl holds a line {"class_id": 7,
"tokens": [3, 1, ...]} per crop, and a folder holds pairs of arrays as LlamaGen reads them (imagenet256_codes/0.npy,
imagenet256_labels/0.npy, ...). An interrupted import continues where it stopped, an export begins anew; running a
finished import again does nothing. Only token files keep class names.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.convert_tokens import ConvertTokensOptions

if __name__ == "__main__":
    run_script("jobs.convert_tokens:convert_tokens", ConvertTokensOptions, __doc__)
