"""Training and inference files of the original release become runs of ours; nothing in them is overlooked."""

import copy
from typing import Any

import pytest
import yaml

from common.build import ConfigError, build_dataclass
from common.config import REPOSITORY, load_settings
from compat import keys as original_keys
from compat.runs import perceptual_shares
from compat.sampling import translate_sampling
from tests.compat.trees import (
    DATACOMP,
    IMAGENET,
    IMAGENET_VAL,
    VQGAN,
    generator,
    legacy_model,
    maskgit,
    rar,
    stage1,
    stage2,
    text_aware,
)
from training.generator_settings import GeneratorRun
from training.tokenizer_settings import TokenizerRun

VQGAN_PARTS = {"weights": VQGAN, "tokenizer": {"name": "maskgit_vqgan"}}
WIDTHS = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}
TITOKS = [("small", 128), ("base", 64), ("large", 32)]
TA_TITOKS = [("base", n, "vq") for n in (32, 64, 128)] + [("base", n, "vae") for n in (32, 64)]
TOKENIZERS = {
    **{f"stage1-{size}": stage1(size, n) for size, n in TITOKS},
    **{f"stage2-{size}": stage2(size, n) for size, n in TITOKS},
    **{f"ta-{size}-{n}-{mode}": text_aware(size, n, mode) for size, n, mode in TA_TITOKS},
    "ta-small-128-vae": text_aware("small", 128, "vae"),
}
ALL = [("tokenizer", tree) for tree in TOKENIZERS.values()] + [("generator", maskgit()), ("generator", rar())]
NAMES = [*TOKENIZERS, "maskgit", "rar"]
CLASSES = {"tokenizer": TokenizerRun, "generator": GeneratorRun}


@pytest.fixture
def settings(tmp_path):
    """Settings from an original tree in a file and overrides, through the front door of the entry scripts."""

    def load(kind: str, tree: dict[str, Any], *overrides: str) -> Any:
        (tmp_path / "original.yaml").write_text(yaml.safe_dump(tree))
        arguments = [f"config={tmp_path}/original.yaml", *overrides]
        return load_settings(CLASSES[kind], arguments)

    return load


def edited(tree: dict[str, Any], dotted: str, value: Any = None) -> dict[str, Any]:
    """A copy with one value set, or with the key removed if it is None."""
    tree = copy.deepcopy(tree)
    *path, key = dotted.split(".")
    section = tree
    for part in path:
        section = section.setdefault(part, {})
    if value is None:
        del section[key]
    else:
        section[key] = value
    return tree


@pytest.mark.parametrize(("kind", "tree"), ALL, ids=NAMES)
def test_what_all_runs_share(settings, kind, tree):
    run = settings(kind, tree)
    training, given = run.training, tree["training"]
    assert (training.save_every, training.evaluate_every, training.preview_every) == (50000, 50001, 5000)
    assert (training.log_every, training.num_workers, training.max_grad_norm) == (50, 12, 1.0)
    assert training.max_steps == given["max_train_steps"]
    assert training.per_gpu_batch_size == given["per_gpu_batch_size"]
    assert training.mixed_precision == given["mixed_precision"] and training.matmul_precision == "high"
    assert training.ema_decay == (0.999 if given["use_ema"] else None)
    assert run.experiment.seed == 42 and run.experiment.trackers == ["wandb"]
    assert run.experiment.project == tree["experiment"]["project"]
    params = tree["optimizer"]["params"]
    assert run.optimizer.learning_rate == params["learning_rate"] and run.optimizer.beta2 == params["beta2"]
    assert (run.optimizer.weight_decay, run.optimizer.epsilon) == (params["weight_decay"], 1e-8)
    warmup = tree["lr_scheduler"]["params"]["warmup_steps"]
    assert (run.schedule.name, run.schedule.warmup_steps, run.schedule.end_lr) == ("cosine", warmup, 1e-5)


@pytest.mark.parametrize(("size", "tokens"), TITOKS)
def test_first_stage(settings, size, tokens):
    run = settings("tokenizer", stage1(size, tokens))
    width, depth, heads = WIDTHS[size]
    model = run.tokenizer
    assert (model["name"], model["layout"], model["num_latent_tokens"]) == ("titok", "proxy", tokens)
    assert (model["encoder_hidden_size"], model["decoder_depth"]) == (width, depth)
    assert model["decoder_num_heads"] == heads and model["quantizer"]["code_dim"] == 12
    assert run.teacher == VQGAN_PARTS and run.initialize is None and run.discriminator is None
    assert run.losses.quantizer_weight == 1.0 and run.losses.perceptual_weight == 0.0
    assert run.experiment.output_dir == "stage1_run1"
    assert run.data.train == {
        "name": "webdataset",
        "path": IMAGENET,
        "image_size": 256,
        "resize_shorter_edge": 256,
        "random_crop": True,
        "random_flip": True,
        "num_classes": 1000,
    }
    assert run.data.validation == {
        "name": "webdataset",
        "path": IMAGENET_VAL,
        "image_size": 256,
        "num_classes": 1000,
    }


def test_second_stage(settings):
    run = settings("tokenizer", stage2("base", 64))
    assert run.tokenizer["layout"] == "two_stage" and run.teacher == VQGAN_PARTS
    assert run.initialize["weights"] == "stage1.bin"
    assert run.initialize["tokenizer"] == run.tokenizer | {"layout": "proxy"}
    losses = run.losses
    assert (losses.discriminator_start, losses.discriminator_weight) == (20_000, 0.01)
    assert (losses.quantizer_weight, losses.perceptual_weight) == (0.0, 0.1)
    assert (losses.perceptual.lpips_weight, losses.perceptual.convnext_weight) == (0.0, 1.0)
    assert (losses.lecam_regularization_weight, losses.lecam_ema_decay) == (0.001, 0.999)
    nlayer = {"name": "nlayer", "base_channels": 128, "num_stages": 3, "pooled_size": 16}
    assert run.discriminator == nlayer and run.discriminator_learning_rate == 2e-4
    run = settings("tokenizer", stage2("base", 64), "experiment.init_weight=runs/stage1")
    assert run.initialize == "runs/stage1"  # a folder says what is in it


@pytest.mark.parametrize("mode", ["vq", "vae"])
def test_single_stage_with_text(settings, mode):
    run = settings("tokenizer", text_aware("base", 64, mode))
    model = run.tokenizer
    assert model["name"] == "tatitok" and "layout" not in model and model["quantizer"]["name"] == mode
    assert model["encoder_hidden_size"] == 768 and model["decoder_hidden_size"] == 1024
    assert mode == "vae" or model["quantizer"]["online_clustering"] is True
    assert run.teacher is None and run.initialize is None and run.discriminator["name"] == "nlayer"
    losses = run.losses
    assert (losses.discriminator_start, losses.discriminator_weight) == (200_000, 0.1)
    assert (losses.perceptual.lpips_weight, losses.perceptual.convnext_weight) == (1.0, 0.1)
    assert (losses.perceptual_weight, losses.kl_weight, losses.logvar_init) == (1.1, 1e-6, 0.0)
    train = run.data.train
    assert train["path"] == DATACOMP and train["captions"] is True and "num_classes" not in train
    assert (train["max_aspect"], train["min_side"]) == (2.0, 256)
    assert run.data.validation["num_classes"] == 1000 and "captions" not in run.data.validation


def test_single_stage_without_text(settings):
    tree = edited(text_aware("base", 64, "vae"), "dataset.params", stage1("base", 64)["dataset"]["params"])
    run = settings("tokenizer", tree)
    assert (run.tokenizer["name"], run.tokenizer["layout"]) == ("titok", "single_stage")
    assert run.data.train["num_classes"] == 1000 and "captions" not in run.data.train


def test_maskgit(settings):
    run = settings("generator", maskgit())
    assert run.generator["name"] == "maskgit" and run.generator["num_tokens"] == 64
    assert (run.generator["codebook_size"], run.generator["num_classes"]) == (4096, 1000)
    assert (run.maskgit.class_label_dropout, run.maskgit.label_smoothing) == (0.1, 0.2)
    assert run.maskgit.unmasked_weight == 0.3 and run.rar is None
    assert run.sampling["guidance_schedule"] == "constant" and run.sampling["num_steps"] == 8
    assert run.data.tokens is None and run.data.tokenizer["weights"] == "tokenizer_titok_b64.bin"
    assert run.data.tokenizer["tokenizer"]["layout"] == "two_stage"
    images = run.data.images
    assert images["path"] == IMAGENET and (images["random_crop"], images["random_flip"]) == (False, True)
    assert images["num_classes"] == 1000 and images["image_size"] == 256
    assert run.experiment.output_dir == "runs/maskgit_run1"  # the files of generators name none


def test_rar(settings):
    run = settings("generator", rar(), "model.generator.hidden_size=1024")
    assert run.generator["name"] == "rar" and run.generator["hidden_size"] == 1024
    assert (run.rar.randomness_anneal_start, run.rar.randomness_anneal_end) == (125_000, 187_500)
    assert run.rar.class_label_dropout == 0.1 and run.maskgit is None
    assert run.sampling == {"guidance_scale": 16.0, "guidance_power": 2.75, "temperature": 1.0}
    assert (run.data.tokens, run.data.images) == ("maskgitvq.jsonl", None)
    assert run.data.tokenizer == VQGAN_PARTS


def test_names_and_folders_replace_weight_files(settings):
    run = settings(
        "tokenizer", stage1("base", 64), "model.vq_model.pretrained_tokenizer_weight=maskgit-vqgan"
    )
    assert run.teacher == "maskgit-vqgan"
    run = settings("generator", maskgit(), "experiment.tokenizer_checkpoint=runs/mine")
    assert run.data.tokenizer == "runs/mine"
    assert settings("generator", rar(), "data.tokenizer=runs/mine").data.tokenizer == "runs/mine"
    assert settings("generator", rar(), "data.tokenizer=null").data.tokenizer is None


def test_overrides_in_our_terms_win(settings):
    run = settings(
        "tokenizer",
        stage2("small", 128),
        "training.max_steps=30",
        "training.max_train_steps=40",
        "training.keep_checkpoints=1",
        "experiment.trackers=[]",
        "optimizer.learning_rate=3e-4",
        "optimizer.epsilon=1e-6",
        "losses.perceptual.convnext_path=c.pth",
        "losses.quantize_end=5",
        "schedule.name=constant",
        "data.train.path=[a.tar,b.tar]",
        "discriminator.base_channels=32",
        "tokenizer.quantizer.commitment_cost=0.5",
    )
    assert run.training.max_steps == 30 and run.training.keep_checkpoints == 1
    assert run.experiment.trackers == [] and run.losses.quantize_end == 5
    assert (run.optimizer.learning_rate, run.optimizer.epsilon) == (3e-4, 1e-6)
    assert run.losses.perceptual.convnext_path == "c.pth" and run.losses.perceptual.convnext_weight == 1.0
    assert (run.schedule.name, run.schedule.warmup_steps) == ("constant", 5_000)
    assert run.data.train["path"] == ["a.tar", "b.tar"] and run.data.train["random_crop"] is True
    assert run.discriminator["base_channels"] == 32 and run.discriminator["num_stages"] == 3
    assert run.tokenizer["quantizer"]["commitment_cost"] == 0.5
    assert settings("tokenizer", stage2("small", 128), "discriminator=null").discriminator is None


def test_overrides_in_the_original_terms(settings):
    run = settings(
        "tokenizer",
        stage1("small", 128),
        "optimizer.params.learning_rate=5e-4",
        "dataset.preprocessing.crop_size=128",
        "dataset.params.train_shards_path_or_url=a.tar::b-{0..3}.tar",
        "training.enable_wandb=false",
        "training.enable_tf32=false",
        "training.use_ema=false",
    )
    assert run.optimizer.learning_rate == 5e-4  # the schedule's reference to it follows
    assert run.tokenizer["image_size"] == run.data.train["image_size"] == 128
    assert run.data.validation["image_size"] == 128
    assert run.data.train["path"] == ["a.tar", "b-{0..3}.tar"]
    assert run.experiment.trackers == ["tensorboard"] and run.training.ema_decay is None
    assert run.training.matmul_precision == "highest"


def test_another_kind_of_data_replaces_the_section(settings):
    folder = ["data.train.name=image_folder", "data.train.path=mine"]
    run = settings("tokenizer", stage1("small", 128), *folder, "data.validation.name=openmoji")
    assert run.data.train == {
        "name": "image_folder",
        "path": "mine",
        "image_size": 256,
        "resize_shorter_edge": 256,
        "random_crop": True,
        "random_flip": True,
    }
    assert run.data.validation == {"name": "openmoji", "image_size": 256}
    tree = edited(stage1("small", 128), "dataset.params.train_shards_path_or_url")
    assert settings("tokenizer", tree, *folder).data.train["path"] == "mine"


def test_tokens_and_images_exclude_each_other(settings):
    run = settings("generator", maskgit(), "data.tokens=mine.tokens")
    assert run.data.tokens == "mine.tokens" and run.data.images is None
    run = settings("generator", rar(), "data.images.random_crop=true")
    assert run.data.tokens is None and run.data.images["path"] == IMAGENET
    assert run.data.images["random_crop"] is True
    run = settings("generator", rar(), "dataset.params.pretokenization=null")
    assert run.data.tokens is None and run.data.images["num_classes"] == 1000


WRONG = [
    (
        "stage1",
        "experiment.sav_every",
        3,
        r"experiment\.sav_every is not an option \(did you mean 'save_every'",
    ),
    ("stage1", "training.max_train_step", 3, r"training\.max_train_step .*did you mean 'max_train_steps'"),
    ("stage1", "optimizer.params.beta3", 0.1, r"optimizer\.params\.beta3 .*did you mean 'beta[12]'"),
    ("stage1", "optimizer.parms", {}, r"optimizer\.parms is not an option \(did you mean 'params'"),
    ("stage1", "dataset.params.pretokenization", "x", r"dataset\.params\.pretokenization is not an option"),
    ("stage1", "dataset.preprocessing.randomflip", True, r"randomflip is not .*did you mean 'random_flip'"),
    ("stage1", "losses.label_smoothing", 0.1, r"losses\.label_smoothing is not an option"),
    ("stage1", "model.vq_modle", {}, r"model\.vq_modle is not an option \(did you mean 'vq_model'"),
    ("stage1", "model.vq_model.token_sizes", 3, r"model\.vq_model\.token_sizes .*did you mean 'token_size'"),
    ("stage1", "model.generator", generator(), r"model\.generator is not used"),
    ("stage1", "trainning", {}, r"trainning is not an option \(did you mean 'training'"),
    ("stage1", "datasets", {}, r"datasets is not an option \(did you mean 'dataset'"),
    ("stage1", "dataset", 3, r"dataset=3 has the wrong type; expected section"),
    ("stage1", "data", 3, r"data=3 has the wrong type; expected section"),
    ("stage1", "model.vq_model", 3, r"model\.vq_model is missing; expected a section"),
    (
        "stage1",
        "experiment.resume",
        False,
        r"experiment\.resume=False .*choose another experiment\.output_dir",
    ),
    ("stage1", "training.use_ema", "yes", r"training\.use_ema='yes' has the wrong type; expected bool"),
    ("stage1", "training.max_train_steps", "many", r"training\.max_steps='many' has the wrong type"),
    ("stage1", "optimizer.name", "sgd", r"optimizer\.name='sgd' is not known; expected adamw"),
    ("stage1", "lr_scheduler.params.learning_rate", 1.0, r"learning_rate=1\.0 must equal optimizer\.params"),
    ("stage1", "lr_scheduler.scheduler", "linear", r"lr_scheduler\.scheduler='linear' is not known"),
    ("stage1", "dataset.params.train_shards_path_or_url", None, r"train_shards_path_or_url is missing"),
    ("stage1", "dataset.params.dataset_with_class_label", False, r"needs dataset\.params\.dataset_with_text"),
    ("stage2", "losses.perceptual_loss", "vgg", r"losses\.perceptual_loss='vgg' is not known"),
    ("stage2", "losses.perceptual_loss", "lpips-convnext_s", r"expected lpips, convnext_s or, with weights"),
    ("stage2", "losses.perceptual_weight", None, r"losses\.perceptual_weight is missing"),
    ("stage2", "losses.discriminator_start", None, r"losses\.discriminator_start is missing"),
    ("maskgit", "experiment.init_weight", "x.bin", r"experiment\.init_weight='x\.bin' .*generators start"),
    ("maskgit", "experiment.tokenizer_checkpoint", None, r"experiment\.tokenizer_checkpoint is missing"),
    ("maskgit", "losses.kl_weight", 1.0, r"losses\.kl_weight is not an option"),
    ("maskgit", "model.maskgen", {}, r"text-to-image generators are not supported"),
    ("maskgit", "model.generator", None, r"model\.generator is missing; expected a section"),
]


@pytest.mark.parametrize(("name", "key", "value", "message"), WRONG, ids=[f"{w[0]}-{w[1]}" for w in WRONG])
def test_mistakes_are_named(settings, name, key, value, message):
    trees = {"stage1": stage1("base", 64), "stage2": stage2("base", 64), "maskgit": maskgit()}
    kind = "generator" if name == "maskgit" else "tokenizer"
    with pytest.raises(ConfigError, match=message):
        settings(kind, edited(trees[name], key, value))


def test_our_own_trees_pass_unchanged():
    ours = {"experiment": {"output_dir": "x"}, "tokenizer": {"name": "titok"}, "data": {}, "training": {}}
    assert TokenizerRun.translate(ours) == ours and translate_sampling(ours) == ours
    with pytest.raises(ConfigError, match="dataset is not an option"):
        build_dataclass(TokenizerRun, TokenizerRun.translate({"dataset": {}}))


@pytest.mark.parametrize(
    ("name", "shares"),
    [("lpips", (1.0, 0.0)), ("convnext_s", (0.0, 1.0)), ("lpips-convnext_s-2.0-0.5", (2.0, 0.5))],
)
def test_perceptual_names(name, shares):
    assert tuple(perceptual_shares(name).values()) == shares


def inference() -> dict[str, Any]:
    options = generator(
        model_type="UViT", image_seq_len=128, num_steps=64, guidance_scale=6.9, guidance_decay="power-cosine"
    )
    return {
        "experiment": {
            "tokenizer_checkpoint": "tokenizer_titok_s128.bin",
            "generator_checkpoint": "generator_titok_s128.bin",
            "output_dir": "titok_s_128",
        },
        "model": {"vq_model": legacy_model("small", 128, True), "generator": options},
        "dataset": {"preprocessing": {"crop_size": 256}},
    }


def test_sampling_from_an_inference_file():
    options = translate_sampling(inference() | {"num_samples": 80, "classes": [1, 2]})
    assert options["output"] == "titok_s_128"
    assert (options["num_samples"], options["classes"]) == (80, [1, 2])
    made = options["generator"]
    assert made["weights"] == "generator_titok_s128.bin" and made["generator"]["name"] == "uvit"
    assert made["sampling"]["num_steps"] == 64 and made["sampling"]["guidance_power"] == 3.0
    assert made["sampling"]["softmax_annealing"] is True
    assert options["tokenizer"]["weights"] == "tokenizer_titok_s128.bin"
    assert options["tokenizer"]["tokenizer"]["layout"] == "two_stage"
    assert translate_sampling(inference() | {"output": "mine", "tokenizer": "titok-s128"}) == {
        "generator": made,
        "tokenizer": "titok-s128",
        "output": "mine",
    }


def test_sampling_from_the_training_file_of_rar():
    tree = edited(rar(), "experiment.generator_checkpoint", "rar_l.bin")
    options = translate_sampling(edited(tree, "model.generator.hidden_size", 1024))
    assert options["generator"]["weights"] == "rar_l.bin" and "output" not in options
    assert options["generator"]["generator"]["hidden_size"] == 1024
    assert options["generator"]["sampling"]["guidance_power"] == 2.75
    assert options["tokenizer"] == VQGAN_PARTS


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "experiment.generator_checkpoint",
            None,
            "generator_checkpoint is missing; expected the weight file",
        ),
        ("experiment.tokenizer_checkpoint", None, "experiment.tokenizer_checkpoint is missing"),
        ("experiment.tokeniser_checkpoint", "x", "did you mean 'tokenizer_checkpoint'"),
        ("training.keep_checkpoints", 3, "training.keep_checkpoints is not an option"),
    ],
)
def test_mistakes_in_inference_files(key, value, message):
    with pytest.raises(ConfigError, match=message):
        translate_sampling(edited(inference(), key, value))


def test_every_known_key_is_documented():
    page = (REPOSITORY / "docs" / "original_configs.md").read_text()
    keys = {
        *original_keys.SHARED,
        *original_keys.UNUSED,
        *(k for group in original_keys.OF_KIND.values() for k in group),
    }
    assert len(keys) > 40 and not [key for key in sorted(keys) if f"`{key}`" not in page]
