"""The program of scripts/gpu_check.sh on a CPU, in its tiny size, and what it does when time or memory is short."""

import json

import pytest
import torch

from jobs import gpu_check as job
from jobs.gpu_check import Check, gpu_check
from jobs.gpu_models import settings_of
from jobs.gpu_page import table
from jobs.gpu_parity import distance, model_parity
from jobs.gpu_scales import SCALES
from jobs.options.gpu_check import GPUCheckOptions
from training.unloaded import unloaded


def test_dry_run(program, tmp_path):
    options = ["device=cpu", "size=tiny", "seconds=600", "compile=false", f"output={tmp_path}"]
    done = program(gpu_check, GPUCheckOptions, *options)
    assert done.code == 0, done.err
    result, scale = json.loads((tmp_path / "result.json").read_text()), SCALES["tiny"]
    assert result["failed"] == result["left_out"] == []
    assert [row["name"] for row in result["training"]][: len(scale.training)] == list(scale.training)
    assert len(result["sampling"]) == len(scale.sampling) * len(scale.sampling_batches)
    assert {row["what"] for row in result["coding"]} == {"tokenizing", "decoding"}
    assert len(result["fid"]) == 1 and all(row["passed"] for row in result["parity"])
    page = (tmp_path / "page.md").read_text()
    assert "## Sampling" in page and "| RAR, batch 2 |" in page


def test_what_fails_and_what_does_not_fit_is_named(monkeypatch):
    def section(check):
        yield "good", lambda: iter([{"kind": "bf16", "limit": 0.1, "passed": True}])
        yield "far", lambda: iter([{"kind": "fp16", "limit": 0.1, "passed": False}])
        yield "large", lambda: (torch.empty(2**60) for _ in range(1))
        yield "late", late

    def late():
        check.end = 0.0
        yield {"passed": True}

    check = Check(GPUCheckOptions(device="cpu", size="tiny", compile=False))
    monkeypatch.setattr(job, "SECTIONS", {"parity": section, "training": section})
    check.section("parity")
    check.section("training")
    assert [row["name"] for row in check.rows["parity"]] == ["good", "far", "late"]
    assert check.failed[0] == "parity: far, fp16: further from float32 than 0.1"
    assert check.failed[1].startswith("parity: large: ") and len(check.failed) == 2
    assert check.left_out == [f"training: {name}" for name in ("good", "far", "large", "late")]


def test_a_wrong_kernel_is_seen(monkeypatch):
    gelu = torch.nn.functional.gelu
    rows = {}
    for name in ("right", "wrong"):
        if name == "wrong":  # another result in half precision only
            wrong = lambda x, **o: gelu(x, **o) * (1.5 if x.dtype == torch.float16 else 1)  # noqa: E731
            monkeypatch.setattr(torch.nn.functional, "gelu", wrong)
        arguments = SCALES["tiny"].parity["RAR"]
        rows[name] = {
            row["kind"]: row for row in model_parity(arguments, torch.device("cpu"), 2, compiled=False)
        }
    assert all(row["passed"] for row in rows["right"].values())
    assert rows["wrong"]["bf16"]["passed"] and not rows["wrong"]["fp16"]["passed"]
    assert distance(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)


def test_the_models_of_the_full_size_need_no_file():
    scale = SCALES["full"]
    for groups in (scale.training, scale.parity, scale.sampling, scale.coding):
        for arguments in groups.values():
            settings_of(arguments)
    assert set(scale.compiled) <= scale.training.keys()
    for name in ("TiTok-B-64, stage 1", "VQ-KD", "MaskGIT-L-32"):
        assert unloaded(settings_of(scale.training[name])).task.modules["model"].section


def test_a_gpu_that_is_missing_is_named(program):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = program(gpu_check, GPUCheckOptions)
    assert done.code == 1 and "PyTorch sees no GPU here; use device=cpu size=tiny" in done.err


def test_table():
    lines = table([{"name": "a", "batch": 2}, {"name": "b", "images_per_second": 12345.6, "passed": False}])
    assert lines[0] == "| name | batch | images per second | passed |"
    assert lines[2:] == ["| a | 2 |  |  |", "| b |  | 12346 | no |"]
