"""The table of docs/scaling.md says what the recipes come to."""

import re

import pytest

from common.build import ConfigError
from common.config import REPOSITORY
from jobs.options.scaling_table import ScalingTableOptions
from jobs.scaling_table import BEGIN, END, global_batch, imagenet_recipes, row, scaling_table, table_rows

PAGE = (REPOSITORY / "docs" / "scaling.md").read_text()
ROWS = dict(table_rows(PAGE.partition(BEGIN)[2].partition(END)[0]))
QUICK = ("cluster/imagenet_clip_8192_online.yaml", "maskgit/imagenet_s128.yaml")


def numbers(line: str) -> list[float]:
    return [float(n.replace(",", "")) for n in re.findall(r"[\d,]*\.?\d+", line.partition("yaml")[2])]


@pytest.mark.parametrize("name", [n for n in QUICK if n in ROWS])
def test_rows_are_those_of_the_recipes(name):
    """Numbers within a twentieth: releases of torch differ a little in what they keep."""
    pytest.importorskip("timm")
    assert numbers(row(name)) == pytest.approx(numbers(ROWS[name]), rel=0.05, abs=1.01)


def test_rows_are_of_recipes_that_say_their_batch():
    recipes = imagenet_recipes()
    assert ROWS and ROWS.keys() <= set(recipes)
    assert global_batch(REPOSITORY / "configs/rar/imagenet_xl.yaml") == 2048
    assert all(global_batch(REPOSITORY / "configs" / name) > 0 for name in recipes)
    with pytest.raises(ConfigError, match="does not say its number of images per update"):
        global_batch(REPOSITORY / "configs/debug/titok.yaml")


def test_rows_are_replaced_and_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.scaling_table.row", lambda name: f"| `{name}` | new |")
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\n| `b.yaml` | old |\n| `c.yaml` | old |\n{END}\nbelow\n")
    scaling_table(ScalingTableOptions(recipes=["c.yaml", "a.yaml"], output=page))
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("\nbelow\n")
    assert list(dict(table_rows(text)).values()) == [
        "| `a.yaml` | new |",
        "| `b.yaml` | old |",
        "| `c.yaml` | new |",
    ]
    page.write_text("no table")
    with pytest.raises(ConfigError, match="has no table between"):
        scaling_table(ScalingTableOptions(output=page))
