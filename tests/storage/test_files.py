from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from common.images import pil_to_tensor, read_image, to_float
from storage.files import save_png, write_yaml


def test_a_full_disk_leaves_the_old_text(tmp_path, monkeypatch):
    write_yaml(tmp_path / "c.yaml", {"a": 1})

    def full(self, text):
        with self.open("w") as file:
            file.write(text[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError):
        write_yaml(tmp_path / "c.yaml", {"a": 2})
    assert yaml.safe_load((tmp_path / "c.yaml").read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


def test_png_keeps_every_level(tmp_path):
    picture = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    save_png(tmp_path / "new/folder/a.png", picture)
    assert torch.equal(pil_to_tensor(read_image(tmp_path / "new/folder/a.png")), picture)
    save_png(tmp_path / "b.png", to_float(picture))
    assert torch.equal(pil_to_tensor(read_image(tmp_path / "b.png")), picture)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    save_png(tmp_path / "a.png", torch.zeros(3, 2, 2))

    def full(self, path, format):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError):
        save_png(tmp_path / "a.png", torch.ones(3, 2, 2))
    monkeypatch.undo()
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (0, 0, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
