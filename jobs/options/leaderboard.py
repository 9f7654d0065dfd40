"""Options of `jobs/leaderboard.py`."""

from dataclasses import dataclass

from common.config import option


@dataclass(kw_only=True)
class LeaderboardOptions:
    """Which results, and where the table goes."""

    results: list[str] = option(help="result files of evaluate, reproduce and compare, or folders with some")
    output: str = option("leaderboard", "folder for leaderboard.md, .html and .csv")
    rank: str | None = option(
        None, "metric that orders rows, such as fid or psnr; null = the first that all rows of a group have"
    )
