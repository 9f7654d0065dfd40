"""Options of `jobs/convert_reference.py`."""

from dataclasses import dataclass

from common.config import option


@dataclass(kw_only=True)
class ConvertReferenceOptions:
    """What to convert into what."""

    input: str = option(
        help="pickle (.pkl) of published statistics, a folder of their .npz files, or one of them"
    )
    output: str = option(help="reference file (.npz)")
