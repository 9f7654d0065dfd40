import json

import pytest
import torch

from compat import models as original
from jobs.convert_checkpoint import convert_checkpoint
from jobs.options.convert_checkpoint import ConvertCheckpointOptions
from modeling.pipeline import load_generator, load_tokenizer
from storage.weights import weight_hash
from tests.compat.originals import SMALL, filled_model, small_generator_tree, write_weights


@pytest.fixture
def convert(program, monkeypatch):
    for size in ("small", "large"):
        monkeypatch.setitem(original.SIZES, size, SMALL)
    return lambda *arguments: program(convert_checkpoint, ConvertCheckpointOptions, *arguments)


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_a_weight_file_and_its_yaml_become_our_folder(convert, kind, tmp_path):
    tree = small_generator_tree("uvit")
    expected = filled_model(tree, kind)
    file = write_weights(tmp_path / "weights.bin", expected)
    (tmp_path / "theirs.json").write_text(json.dumps(tree))
    arguments = (f"input={file}", f"output={tmp_path}/out", f"original={tmp_path}/theirs.json")
    done = convert(*arguments)
    assert done.code == 0, done.err
    assert kind in done.out and weight_hash(expected) in done.out
    assert f"{sum(p.numel() for p in expected.parameters()):,} parameters" in done.out
    loaded = (load_tokenizer if kind == "tokenizer" else load_generator)(tmp_path / "out")
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in expected.state_dict().items())
    written = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert set(written) == {"config.json", "model.safetensors"}
    config = json.loads(written["config.json"])
    if kind == "generator":
        assert (
            config["sampling"] == original.sampling_section(tree)
            and len(config["tokens"]["class_names"]) == 1000
        )
    assert convert(*arguments, f"kind={kind}").code == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == written


def test_mistakes_end_with_one_line(convert, tmp_path):
    done = convert("input=titok-l23", f"output={tmp_path}/out")
    assert done.code == 1 and "did you mean 'titok-l32'" in done.err and len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert "original=" in convert("--help").out
