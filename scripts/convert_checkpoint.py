"""Convert a model to this project's folder format: config.json and model.safetensors.

    python scripts/convert_checkpoint.py input=titok-l32 output=models/titok-l32
    python scripts/convert_checkpoint.py input=rar_b.bin original=rar.yaml kind=generator output=models/rar-b
    python scripts/convert_checkpoint.py input=organisation/repository output=models/theirs

The folder can be given wherever a model is named: tokenizer=models/titok-l32. Weight files of the original are read
entry by entry, without running code from them. Converting again writes the same files; another model in the folder is
replaced with overwrite=true only.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.config import run_script
from jobs.options.convert_checkpoint import ConvertCheckpointOptions

if __name__ == "__main__":
    run_script("jobs.convert_checkpoint:convert_checkpoint", ConvertCheckpointOptions, __doc__)
