"""Published statistics of the feature spaces, as one reference file."""

from pathlib import Path

from common.config import find_file
from common.console import banner, say
from evaluator.moments import Statistics
from evaluator.published_statistics import read_pickle
from evaluator.reference import check_moments, open_reference, write_reference
from evaluator.spaces import SPACES
from jobs.options.convert_reference import ConvertReferenceOptions
from storage.files import check_output_file
from storage.locks import reserved_file

PICKLES = (".pkl", ".pickle")


def read_statistics(path: Path) -> dict[str, Statistics]:
    """Statistics by kind of features; ValueError if the file holds none, or holds code."""
    if path.suffix not in PICKLES:
        return open_reference(path).statistics
    found = {}
    for name, arrays in read_pickle(path).items():
        mean, covariance = (arrays[key].astype("float64") for key in ("mu", "sigma"))
        try:
            check_moments(mean, covariance)
        except ValueError as error:
            raise ValueError(f"{path}: space {name}: {error}") from error
        found[SPACES[name].features] = Statistics(mean, covariance)
    return found


def convert_reference(options: ConvertReferenceOptions) -> None:
    """Convert, and say which spaces of FDr6 are there."""
    check_output_file(options.output, begins=b"PK")
    source = find_file(options.input, "input")
    banner("Converting a reference", {"input": source, "output": options.output})
    with reserved_file(options.output):
        statistics = read_statistics(source)
        if not statistics:
            raise ValueError(f"input={options.input} holds images, expected statistics")
        # Nobody knows more of them than the numbers, so they stay "unverified".
        write_reference(options.output, statistics, None)
    missing = [name for name, space in SPACES.items() if space.features not in statistics]
    say(f"{', '.join(statistics)}: {options.output}")
    say(f"enough for fdr6: {'yes' if not missing else 'no, ' + ', '.join(missing) + ' missing'}")
