"""Curves of a run, and what they say in words: training and held-out values together, the best step, over-fitting."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.build import ConfigError
from common.config import read_yaml
from storage.json_files import try_json
from training.checkpoint import BEST
from training.tracker import METRICS_FILE, read_metrics

# Not in the curves: these describe the machine, not the training.
NOT_DRAWN = ("step", "kind", "images", "data_fraction", "seconds_per_step", "images_per_second")
COLUMNS, LEAD = 4, 2  # panels in a row; the side of a leading panel in small ones
Points = list[tuple[int, float]]
Series = dict[str, Points]  # by name: train/total_loss


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A training value and the held-out value that belongs to it."""

    train: str
    held_out: str
    words: str  # what the training value is
    same: bool = True  # whether both are the same quantity, which share an axis
    higher: bool = False  # whether a higher held-out value is better
    worse: float = 0.05  # a held-out value is worse that has changed by more than this, ...
    relative: bool = True  # ... as a share of the best one


# In the order in which they lead the curves of a run that does not say what decides.
PAIRS = (
    Pair(train="total_loss", held_out="loss", words="training loss"),
    Pair(train="reconstruction_loss", held_out="proxy_cross_entropy", words="training loss"),
    Pair(
        train="feature_loss",
        held_out="feature_cosine",
        words="training loss",
        same=False,
        higher=True,
        worse=0.02,
        relative=False,
    ),
    Pair(
        train="reconstruction_loss",
        held_out="psnr",
        words="training reconstruction loss",
        same=False,
        higher=True,
        worse=0.5,
        relative=False,
    ),
    Pair(train="reconstruction_loss", held_out="lpips", words="training reconstruction loss", same=False),
)


@dataclass(frozen=True, kw_only=True)
class RunCurves:
    """What a run folder records over its steps."""

    series: Series
    lead: Pair | None  # what tells most about the run
    best: tuple[int, float] | None  # step and held-out value of `lead`
    kept: bool  # whether the weights of the best step are in `best/`
    stopped: int | None  # the last step, if the run ended before its number of steps

    @property
    def train(self) -> Points:
        return self.series.get(f"train/{self.lead.train}", []) if self.lead else []

    @property
    def held_out(self) -> Points:
        return self.series.get(f"evaluate/{self.lead.held_out}", []) if self.lead else []

    def over_fitting(self) -> str | None:
        """The sentence that says so if held-out values got worse while training went on to get better."""
        if self.best is None or not self.train:
            return None
        (best_step, best), (step, last), pair = self.best, self.held_out[-1], self.lead
        lost = (best - last) if pair.higher else (last - best)
        before = [value for at, value in self.train if at <= best_step] or [self.train[0][1]]
        if step <= best_step or lost <= pair.worse * (abs(best) if pair.relative else 1):
            return None
        if self.train[-1][1] >= before[-1]:
            return None
        use = "use best/" if self.kept else "use training.keep_best=true"
        return (
            f"held-out {pair.held_out} {'fell' if pair.higher else 'rose'} from {best:.3g} at step {best_step} to"
            f" {last:.3g} while the {pair.words} fell from {before[-1]:.3g} to {self.train[-1][1]:.3g}: the model"
            f" memorises; {use}, more images, more dropout or a smaller model, or fewer steps"
        )


def read_curves(folder: Path) -> RunCurves:
    """The curves of a run folder, finished or not."""
    series: Series = {}
    for record in read_metrics(folder / METRICS_FILE):
        for name, value in record.items():
            if name not in NOT_DRAWN and isinstance(value, (int, float)):
                series.setdefault(f"{record['kind']}/{name}", []).append((record["step"], value))
    kept = try_json(folder / BEST / "metrics.json", step=int)
    found = [pair for pair in PAIRS if f"evaluate/{pair.held_out}" in series]
    found = [pair for pair in found if pair.held_out == kept.get("decided_by")] or found
    lead, best = (found[0] if found else None), None
    if lead is not None:
        held_out = series[f"evaluate/{lead.held_out}"]
        best = (max if lead.higher else min)(held_out, key=lambda point: point[1])
        best = next((point for point in held_out if point[0] == kept.get("step")), best)
    last, end = max((step for points in series.values() for step, _ in points), default=0), _end(folder)
    return RunCurves(
        series=series,
        lead=lead,
        best=best,
        kept=best is not None and best[0] == kept.get("step"),
        stopped=last if end is not None and last < end else None,
    )


def _end(folder: Path) -> int | None:
    """The number of steps that a run was to make, if its configuration tells."""
    try:
        training = read_yaml(folder / "config.yaml", needed=["training"]).get("training")
    except (OSError, ConfigError):
        return None
    end = training.get("max_steps") if isinstance(training, Mapping) else None
    return end if isinstance(end, int) else None


def draw_curves(folders: Mapping[str, Path], output: Path) -> bool:
    """Write a PNG of all that changes over the steps of finished runs {title: folder}; False if nothing does.

    Large panels show training and held-out values together, with the best step, an early stop and over-fitting.
    """
    runs = {title: read_curves(Path(folder)) for title, folder in folders.items()}
    leads = {title: run for title, run in runs.items() if len(run.held_out) > 1}
    panels = [panel for title, run in runs.items() for panel in _small_panels(title, run, title in leads)]
    if not panels and not leads:
        return False
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    places, free = _layout(len(leads), len(panels))
    rows = max((*(row + LEAD for row, _ in places), *(row + 1 for row, _ in free)))
    columns = max((*(column + LEAD for _, column in places), *(column + 1 for _, column in free)))
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    for (title, run), (row, column) in zip(leads.items(), places, strict=True):
        _draw_lead(figure.add_subplot(grid[row : row + LEAD, column : column + LEAD]), title, run)
    for (name, lines), (row, column) in zip(panels, free, strict=True):
        _draw_small(figure.add_subplot(grid[row, column]), name, lines)
    figure.savefig(output, dpi=110)
    return True


def _layout(leads: int, small: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Row and column of large panels, from the top left on, and of small ones around them."""
    per_row = COLUMNS // LEAD
    places = [(i // per_row * LEAD, i % per_row * LEAD) for i in range(leads)]
    taken = {(r + i, c + j) for r, c in places for i in range(LEAD) for j in range(LEAD)}
    cells = ((i // COLUMNS, i % COLUMNS) for i in range(len(taken) + small + COLUMNS))
    return places, [cell for cell in cells if cell not in taken][:small]


def _small_panels(title: str, run: RunCurves, has_lead: bool) -> Iterator[tuple[str, dict[str, Points]]]:
    """Title and lines of every scalar that changes; what is measured of both kinds of data shares a panel."""
    moving = {n: p for n, p in sorted(run.series.items()) if len({v for _, v in p}) > 1}
    drawn = set()
    if has_lead:
        drawn.add(f"evaluate/{run.lead.held_out}")
        drawn.add(f"train/{run.lead.train}")
    for name, points in moving.items():
        kind, scalar = name.split("/", 1)
        other = f"train/{scalar}"
        if name in drawn:
            continue
        if kind == "evaluate" and other in moving:
            drawn.add(other)
            yield f"{title}: {scalar}", {"training": moving[other], "held-out": points}
        else:
            yield f"{title}: {name}", {"": points}


def _draw_small(axis: Any, name: str, lines: dict[str, Points]) -> None:
    for (label, points), colour in zip(lines.items(), ("C0", "C3"), strict=False):
        axis.plot(*zip(*points, strict=True), linewidth=1, label=label, color=colour)
    if len(lines) > 1:
        axis.legend(fontsize=7)
    _dress(axis, name, [value for points in lines.values() for _, value in points], log=len(lines) == 1)


def _dress(axis: Any, title: str, values: list[float], log: bool) -> None:
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
    if log and min(values) > 0 and max(values) > 20 * min(values):  # a tall start would flatten the rest
        axis.set_yscale("log")


def _draw_lead(axis: Any, title: str, run: RunCurves) -> None:
    pair, (best_step, best) = run.lead, run.best
    handles = axis.plot(*zip(*run.train, strict=True), color="C0", label=pair.words) if run.train else []
    held = axis if pair.same else axis.twinx()
    handles += held.plot(
        *zip(*run.held_out, strict=True), color="C3", marker=".", label=f"held-out {pair.held_out}"
    )
    kept = ", kept in best/" if run.kept else ""
    label = f"best: {best:.4g} at step {best_step}{kept}"
    handles += held.plot(
        [best_step], [best], linestyle="", marker="*", markersize=14, color="C2", zorder=5, label=label
    )
    axis.axvline(best_step, color="C2", linestyle="--", linewidth=1)
    if run.stopped is not None:
        label = f"stopped early at step {run.stopped}"
        handles.append(axis.axvline(run.stopped, color="black", linestyle=":", linewidth=1.5, label=label))
    axis.set_xlabel("step", fontsize=8)
    text = run.over_fitting()
    if text is not None:
        label = "over-fitting: held-out values get worse"
        handles.append(axis.axvspan(best_step, run.held_out[-1][0], color="C3", alpha=0.08, label=label))
        axis.set_xlabel("\n".join(textwrap.wrap(text, 100)), fontsize=8, color="C3")
    # Two curves are compared by eye, which a logarithm would mislead.
    values, log = [value for _, value in run.train], bool(run.train) and not pair.same
    _dress(axis, f"{title}: training and held-out data", values, log)
    axis.legend(handles=handles, fontsize=8)
    if not pair.same:
        axis.set_ylabel(pair.words, fontsize=8, color="C0")
        held.set_ylabel(f"held-out {pair.held_out}", fontsize=8, color="C3")
        held.tick_params(labelsize=7)
