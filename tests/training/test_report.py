import pytest
import torch
from torch import nn

from common import console
from common.build import ConfigError
from training import report
from training.report import FEWEST_JUDGED, Progress, SkippedSamples, require_finite


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets."""
    now = [0.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    return now


def test_speed_leaves_pauses_out(clock):
    progress = Progress(100, 10, 8, torch.device("cpu"))
    clock[0] = 6.0
    progress.waited = 1.0
    with progress.pause():
        clock[0] = 10.0
    speed = progress.lap(12)
    assert speed == {"seconds_per_step": 3.0, "images_per_second": 2 * 8 / 6, "data_fraction": 1 / 6}
    clock[0] = 11.0
    assert progress.lap(13) == {"seconds_per_step": 1.0, "images_per_second": 8.0, "data_fraction": 0.0}


def test_speed_is_per_process(clock, monkeypatch):
    monkeypatch.setattr(report.distributed, "world_size", lambda: 4)
    progress = Progress(100, 0, 64, torch.device("cpu"))
    clock[0] = 2.0
    assert progress.lap(1)["images_per_second"] == 8.0


def test_lines_are_aligned_and_tell_what_people_want_to_know(clock):
    progress = Progress(10_000, 0, 8, torch.device("cpu"))
    scalars = {"total_loss": 1.25, "data_fraction": 0.25, "images_per_second": 99.6, "seconds_per_step": 2.0}
    line = progress.line(50, scalars, 1e-4)
    assert line.startswith("step    50/10000   0.5% | loss 1.2500 | lr 1.0e-04 | gnorm nan | data 25% |")
    assert "  100 img/s/process" in line and line.endswith("eta 5h31m")
    other = progress.line(9_999, {**scalars, "gradient_norm/model": 0.5}, 1e-4)
    assert "gnorm 0.50" in other and other.index("| loss") == line.index("| loss")
    assert other.endswith("eta 2s")


def test_skipped_samples_are_named_once(capsys):
    skipped = SkippedSamples(0.5)
    skipped.add(["b.png: cut", "a.png: cut"], 30)
    skipped.report()
    skipped.add(["a.png: cut"], 30)
    skipped.report()
    err = capsys.readouterr().err
    assert err == "warning: skipped a.png: cut\nwarning: skipped b.png: cut\n"
    assert (skipped.count, skipped.read) == (3, 60)


def test_too_many_stop_the_run_and_one_in_the_first_batch_does_not(capsys):
    skipped = SkippedSamples(0.01)
    skipped.add(["a"], 8)
    skipped.report()
    assert FEWEST_JUDGED == 1000
    skipped.add([str(i) for i in range(9)], 800)
    skipped.report()  # ten of the first thousand are one in a hundred
    skipped.add(["b"], 1)
    with pytest.raises(ConfigError, match=r"11 of 820 samples could not be read, .*max_skipped=0\.01"):
        skipped.report()
    skipped.add([], 1000)
    skipped.report()
    none_allowed = SkippedSamples(0.0)
    none_allowed.report()
    none_allowed.add(["a"], 10_000)
    with pytest.raises(ConfigError, match="1 of 10001"):
        none_allowed.report()


def test_numbers_that_broke_down_are_named_with_the_first_step():
    sound, broken = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad():
        broken.weight[0, 1] = float("nan")
    require_finite({}, {"model": broken})
    wrong = {"total_loss": 4, "later": 5, "gan_loss": 4}
    with pytest.raises(ConfigError, match=r"^step 4: total_loss, gan_loss is not finite .*learning_rate"):
        require_finite(wrong, {"model": sound})
    with pytest.raises(ConfigError, match=r"tensor discriminator.weight \[2, 2\] is not finite"):
        require_finite(wrong, {"model": sound, "discriminator": broken})


def test_the_second_window_says_how_long_the_whole_run_takes():
    progress = Progress(10_000, 0, 8, torch.device("cpu"))
    scalars = {"total_loss": 1.0}
    lines = []
    for step in (1, 2, 3):
        progress.lap(step)
        lines.append(
            progress.line(
                step, scalars | {**dict(data_fraction=0, images_per_second=8), "seconds_per_step": 2.0}, 0.1
            )
        )
    assert [line.count("\n") for line in lines] == [0, 1, 0]
    assert "at this speed the 10000 steps of the whole run take 5h33m on 1 x cpu, 2 s each" in lines[1]
    short = Progress(100, 0, 8, torch.device("cpu"))
    short.windows = 2
    assert "whole run" not in short.line(
        2, scalars | {"data_fraction": 0, "images_per_second": 8, "seconds_per_step": 2.0}, 0.1
    )
