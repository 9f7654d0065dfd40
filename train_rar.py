"""Train a token generator: RAR, MaskGIT or U-ViT, on the tokens of any tokenizer.

    python scripts/pretokenize.py tokenizer=runs/titok output=runs/titok/train.tokens
    python train_rar.py config=configs/rar/openmoji.yaml data.tokens=runs/titok/train.tokens
    accelerate launch train_rar.py config=FILE training.per_gpu_batch_size=64

Codebook size, tokens per image and classes come from the tokens. Running the same command again resumes from the
newest checkpoint. FILE may also be a training configuration of the original code release.
"""

from common.config import run_script
from training.generator_settings import GeneratorRun


def main(run: GeneratorRun) -> None:
    """Train what the settings describe."""
    from training.generator_run import train_generator  # here: help and errors are quick without torch

    train_generator(run)


if __name__ == "__main__":
    run_script(main, GeneratorRun, __doc__)
