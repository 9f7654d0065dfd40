"""Curves of a run's metrics.jsonl as one PNG."""

from pathlib import Path

from training.tracker import METRICS_FILE, read_metrics

# Of interest while a run goes on, not afterwards.
SKIPPED = ("step", "kind", "images", "data_fraction", "seconds_per_step", "images_per_second")


def draw_curves(folders: dict[str, Path], output: Path) -> bool:
    """One panel per scalar that changes over time; several runs side by side.

    Args:
        folders: {title: run folder}.
        output: PNG to write.

    Returns:
        False if there is nothing to draw.
    """
    panels = []
    for title, folder in folders.items():
        series: dict[str, list[tuple[int, float]]] = {}
        for record in read_metrics(Path(folder) / METRICS_FILE):
            for name, value in record.items():
                if name not in SKIPPED and isinstance(value, (int, float)):
                    series.setdefault(f"{record['kind']}/{name}", []).append((record["step"], value))
        panels += [
            (f"{title}: {n}", p)
            for n, p in sorted(series.items())
            if len(p) > 1 and len({v for _, v in p}) > 1
        ]
    if not panels:
        return False
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    for i, (name, points) in enumerate(panels):
        axis = figure.add_subplot(rows, columns, i + 1)
        axis.plot(*zip(*points, strict=True), linewidth=1)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        values = [value for _, value in points]
        if min(values) > 0 and max(values) > 20 * min(values):  # a tall start would flatten all that follows
            axis.set_yscale("log")
    figure.savefig(output, dpi=110)
    return True
