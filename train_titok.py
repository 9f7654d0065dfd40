"""Train an image tokenizer.

    python train_titok.py config=configs/titok/openmoji.yaml
    accelerate launch train_titok.py config=FILE training.per_gpu_batch_size=32 experiment.output_dir=runs/mine

Running the same command again resumes from the newest checkpoint. The run folder can then be given wherever a
tokenizer is asked for. FILE may also be a training configuration of the original code release.
"""

from common.config import run_script
from training.tokenizer_settings import TokenizerRun


def main(run: TokenizerRun) -> None:
    """Train what the settings describe."""
    from training.tokenizer_run import train_tokenizer  # here: help and errors are quick without torch

    train_tokenizer(run)


if __name__ == "__main__":
    run_script(main, TokenizerRun, __doc__)
