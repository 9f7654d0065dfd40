"""Options of `jobs/summarize.py`."""

from dataclasses import dataclass

from common.config import option


@dataclass(kw_only=True)
class SummaryOptions:
    """Which folders belong together."""

    tokenizer: str = option(help="run folder of train_titok.py")
    generator: str = option(help="run folder of train_rar.py")
    samples: str = option(help="output folder of sample_imagenet.py")
    output: str = option(help="folder for the results")
