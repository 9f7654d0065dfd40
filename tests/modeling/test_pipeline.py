import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.config import read_yaml
from modeling import pipeline
from modeling.generators import MaskGIT
from modeling.pretrained.run_folder import open_run
from storage.files import write_yaml
from storage.weights import CheckpointError, weight_hash
from tests.conftest import CLASS_NAMES
from tests.modeling.generators.masked_models import BERT_TINY
from tests.parity import filled


@pytest.fixture
def images():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def copy_of(run, target):
    shutil.copytree(run, target)
    return target


def test_loaded_models_are_frozen_and_equal_their_files(tiny_tokenizer_run, tiny_generator_run):
    for load, run in (
        (pipeline.load_tokenizer, tiny_tokenizer_run),
        (pipeline.load_generator, tiny_generator_run),
    ):
        module = load(run)
        assert not module.training and not any(p.requires_grad for p in module.parameters())
        stored = load_file(run / "model.safetensors")
        assert all(torch.equal(stored[name], tensor) for name, tensor in module.state_dict().items())


def test_unfinished_run_gives_its_newest_checkpoint_and_prefers_averaged_weights(
    tiny_tokenizer_run, tmp_path
):
    run = copy_of(tiny_tokenizer_run, tmp_path / "run")
    weights = load_file(run / "model.safetensors")
    (run / "model.safetensors").unlink()
    for step, shift in ((900, 1.0), (1000, 2.0)):
        folder = run / f"checkpoints/step-{step:08d}"
        folder.mkdir(parents=True)
        for stem, more in (("model", 0.0), ("ema", 0.5)):
            save_file({k: v + shift + more for k, v in weights.items()}, folder / f"{stem}.safetensors")
    (run / "checkpoints/.step-00001100.part").mkdir()
    expected = weights["latent_tokens"] + 2.5
    assert torch.allclose(pipeline.load_tokenizer(run).state_dict()["latent_tokens"], expected)
    # A checkpoint folder, and a file in it, can be named themselves.
    for name in ("", "ema.safetensors"):
        shutil.copy(run / "config.yaml", run / "checkpoints/step-00001000")
        found = pipeline.load_tokenizer(run / "checkpoints/step-00001000" / name)
        assert torch.allclose(found.state_dict()["latent_tokens"], expected)


def test_missing_parts_are_named(tiny_tokenizer_run, tiny_generator_run, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pipeline.load_tokenizer(tmp_path / "nowhere")
    run = copy_of(tiny_tokenizer_run, tmp_path / "run")
    (run / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        pipeline.load_tokenizer(run)
    run = copy_of(tiny_tokenizer_run, tmp_path / "other")
    (run / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        pipeline.load_tokenizer(run)
    with pytest.raises(ValueError, match="not the folder of a tokenizer: it holds a generator"):
        pipeline.load_tokenizer(tiny_generator_run)


def test_cut_weights_are_damaged(tiny_tokenizer_run, tmp_path):
    run = copy_of(tiny_tokenizer_run, tmp_path / "run")
    whole = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        pipeline.load_tokenizer(run)


def test_hash_follows_weights_not_files(tiny_tokenizer_run):
    tokenizer = pipeline.load_tokenizer(tiny_tokenizer_run)
    first = weight_hash(tokenizer)
    assert len(first) == 16 and first == weight_hash(pipeline.load_tokenizer(tiny_tokenizer_run))
    tokenizer.latent_tokens[0, 0] += 1e-6
    assert weight_hash(tokenizer) != first


def test_reconstruct_does_not_depend_on_the_batch_size(tiny_tokenizer_run, images):
    tokenizer = pipeline.load_tokenizer(tiny_tokenizer_run)
    whole = pipeline.reconstruct(tokenizer, images)
    assert whole.shape == images.shape and whole.min() >= 0 and whole.max() <= 1
    torch.testing.assert_close(pipeline.reconstruct(tokenizer, images, batch_size=2), whole)


def test_samples_depend_on_their_index_alone(tiny_generator_run):
    model = pipeline.load_image_model(tiny_generator_run)
    labels = torch.arange(16) % 3
    tokens = pipeline.generate_tokens(model.generator, labels, seed=3, **model.sampling)
    assert tokens.shape == (16, 6) and len(tokens.unique(dim=0)) > 8
    some = [11, 2, 7]
    again = pipeline.generate_tokens(
        model.generator, labels[some], seed=3, indices=some, batch_size=2, **model.sampling
    )
    assert torch.equal(again, tokens[some])
    other = pipeline.generate_tokens(model.generator, labels, seed=4, **model.sampling)
    assert not torch.equal(other, tokens)
    pictures = pipeline.generate(model.generator, model.tokenizer, labels, seed=3, **model.sampling)
    torch.testing.assert_close(pictures, pipeline.decode(model.tokenizer, tokens))
    assert model.class_names == CLASS_NAMES


def test_generator_of_other_tokens_is_refused(tiny_tokenizer_run, tiny_generator_run, tmp_path):
    other = copy_of(tiny_tokenizer_run, tmp_path / "tok")
    weights = load_file(other / "model.safetensors")
    save_file({k: v + 0.01 for k, v in weights.items()}, other / "model.safetensors")
    with pytest.raises(ValueError, match="tokens of another tokenizer"):
        pipeline.load_image_model(tiny_generator_run, other)


def test_generator_that_names_no_tokenizer_needs_one_of_its_sizes(
    tiny_tokenizer_run, tiny_generator_run, tmp_path
):
    run = copy_of(tiny_generator_run, tmp_path / "run")
    config = read_yaml(run / "config.yaml")
    del config["tokens"]
    write_yaml(run / "config.yaml", config)
    with pytest.raises(ValueError, match="tokenizer=FOLDER"):
        pipeline.load_image_model(run)
    model = pipeline.load_image_model(run, tiny_tokenizer_run)
    assert model.class_names == ["0", "1", "2"]
    config["generator"]["num_tokens"] = 7
    write_yaml(run / "config.yaml", config)
    weights = load_file(run / "model.safetensors")
    grown = {
        k: torch.cat([v, v[:, :1]], dim=1) if "embed" in k and v.ndim == 3 else v for k, v in weights.items()
    }
    save_file(grown, run / "model.safetensors")
    with pytest.raises(ValueError, match="makes 7 tokens of 48 codes, but .* has 6 of 48"):
        pipeline.load_image_model(run, tiny_tokenizer_run)


def test_classes_by_number_and_name():
    assert pipeline.find_classes("all", CLASS_NAMES) == [0, 1, 2]
    assert pipeline.find_classes([2, "cat"], CLASS_NAMES) == [2, 0]
    assert pipeline.find_classes("dog", CLASS_NAMES) == [1] and pipeline.find_classes(1, CLASS_NAMES) == [1]
    with pytest.raises(ValueError, match=r"class 3 is out of range; this generator knows 0\.\.2"):
        pipeline.find_classes([0, 3], CLASS_NAMES)
    with pytest.raises(ValueError, match="did you mean 'Food & Drink'"):
        pipeline.find_classes(["food and drink"], CLASS_NAMES)
    with pytest.raises(ValueError, match="names no class"):
        pipeline.find_classes([], CLASS_NAMES)


NUMBERED = sorted(map(str, range(12)))  # 0, 1, 10, 11, 2: as text, which is how class folders are sorted


def test_numbers_as_names_never_mean_another_class():
    with pytest.raises(
        ValueError, match=r"class 2 is ambiguous: class '2' has label 4; label 2 is class '10'.*\[\"2\"\]"
    ):
        pipeline.find_classes([2], NUMBERED)
    assert pipeline.find_classes(["2"], NUMBERED) == [4] and pipeline.find_classes("10", NUMBERED) == [2]
    assert pipeline.find_classes([0, 1], NUMBERED) == [0, 1]  # both readings agree
    padded = [f"{n:02d}" for n in range(12)]
    assert pipeline.find_classes([2, 11], padded) == [2, 11]
    from_one = [f"{n:02d}" for n in range(1, 13)]
    with pytest.raises(ValueError, match="class 2 is ambiguous: class '02' has label 1"):
        pipeline.find_classes(2, from_one)
    with pytest.raises(ValueError, match="class 12 is ambiguous: class '12' has label 11; say which"):
        pipeline.find_classes(12, from_one)
    with pytest.raises(ValueError, match="no class is called 0; label 0 is class '01'"):
        pipeline.find_classes([0], from_one)
    with pytest.raises(ValueError, match="ambiguous"):
        pipeline.find_classes([3], ["dog", "3", "cat", "owl"])


def test_names_that_several_classes_have_and_what_is_no_name_are_refused():
    with pytest.raises(ValueError, match=r"class 'crane' is ambiguous: labels \[0, 2\]"):
        pipeline.find_classes(["crane"], ["crane", "owl", "crane"])
    assert pipeline.find_classes([2], ["crane", "owl", "crane"]) == [2]
    with pytest.raises(ValueError, match="class True is unknown"):  # True == 1
        pipeline.find_classes([True], CLASS_NAMES)


def test_weights_in_a_run_are_found_from_its_folder_and_file(tiny_tokenizer_run):
    assert open_run(tiny_tokenizer_run).weights == open_run(tiny_tokenizer_run / "model.safetensors").weights


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_masking_steps_end_in_the_tokens_of_generate_tokens(temperature):
    generator = filled(lambda: MaskGIT(**BERT_TINY))
    labels, settings = torch.tensor([0, 2, 1]), {"num_steps": 4, "temperature": temperature}
    steps = pipeline.masking_steps(generator, labels, seed=5, **settings)
    assert len(steps) == 5 and all(step.shape == (3, generator.num_tokens) for step in steps)
    unknown = [step == generator.mask_token for step in steps]
    assert unknown[0].all() and not unknown[-1].any()
    for before, after in zip(steps, steps[1:], strict=False):
        decided = before != generator.mask_token
        assert torch.equal(after[decided], before[decided])  # what is decided stays
        assert ((after != generator.mask_token).sum(1) > decided.sum(1)).all()
    expected = pipeline.generate_tokens(generator, labels, seed=5, **settings)
    assert torch.equal(steps[-1], expected)
    other = pipeline.masking_steps(generator, labels, seed=6, **settings)[-1]
    assert torch.equal(other, expected) == (temperature == 0)


def test_masking_steps_refuse_other_generators_and_unknown_settings(tiny_generator_run):
    with pytest.raises(ValueError, match="a RAR has no masking steps, expected a MaskedGenerator"):
        pipeline.masking_steps(pipeline.load_generator(tiny_generator_run), torch.tensor([0]))
    with pytest.raises(ValueError, match="did you mean 'num_steps'"):
        pipeline.masking_steps(filled(lambda: MaskGIT(**BERT_TINY)), torch.tensor([0]), num_step=3)
