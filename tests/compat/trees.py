"""Trees with the keys of the original release's training files."""

from typing import Any

IMAGENET = "imagenet_sharded/train/imagenet-train-{0000..0252}.tar"
IMAGENET_VAL = "imagenet_sharded/val/imagenet-val-{0000..0009}.tar"
DATACOMP = "datacomp_sharded/train/datacomp-train-{000000..140089}.tar"
VQGAN = "maskgit-vqgan-imagenet-f16-256.bin"


def shared(name: str, *, steps: int, warmup: int, rate: float, beta2: float, decay: float) -> dict[str, Any]:
    """What all training files have."""
    return {
        "experiment": {
            "project": name,
            "name": f"{name}_run1",
            "output_dir": f"{name}_run1",
            "max_train_examples": 1281167,
            "save_every": 50000,
            "eval_every": 50001,
            "generate_every": 5000,
            "log_every": 50,
            "log_grad_norm_every": 1000,
            "resume": True,
        },
        "dataset": {
            "params": {
                "train_shards_path_or_url": IMAGENET,
                "eval_shards_path_or_url": IMAGENET_VAL,
                "num_workers_per_gpu": 12,
            },
            "preprocessing": {
                "resize_shorter_edge": 256,
                "crop_size": 256,
                "random_crop": True,
                "random_flip": True,
            },
        },
        "optimizer": {
            "name": "adamw",
            "params": {"learning_rate": rate, "beta1": 0.9, "beta2": beta2, "weight_decay": decay},
        },
        "lr_scheduler": {
            "scheduler": "cosine",
            "params": {
                "learning_rate": "${optimizer.params.learning_rate}",
                "warmup_steps": warmup,
                "end_lr": 1e-5,
            },
        },
        "training": {
            "gradient_accumulation_steps": 1,
            "per_gpu_batch_size": 32,
            "mixed_precision": "fp16",
            "enable_tf32": True,
            "enable_wandb": True,
            "use_ema": True,
            "seed": 42,
            "max_train_steps": steps,
            "num_generated_images": 2,
            "max_grad_norm": 1.0,
        },
    }


def legacy_model(size: str, tokens: int, finetune: bool, commitment: float = 0.25) -> dict[str, Any]:
    return {
        "codebook_size": 4096,
        "token_size": 12,
        "use_l2_norm": True,
        "commitment_cost": commitment,
        "vit_enc_model_size": size,
        "vit_dec_model_size": size,
        "vit_enc_patch_size": 16,
        "vit_dec_patch_size": 16,
        "num_latent_tokens": tokens,
        "finetune_decoder": finetune,
    }


def pixel_losses(start: int, weight: float, perceptual: str, perceptual_weight: float) -> dict[str, Any]:
    return {
        "discriminator_start": start,
        "quantizer_weight": 1.0,
        "discriminator_factor": 1.0,
        "discriminator_weight": weight,
        "perceptual_loss": perceptual,
        "perceptual_weight": perceptual_weight,
        "reconstruction_loss": "l2",
        "reconstruction_weight": 1.0,
        "lecam_regularization_weight": 0.001,
    }


def stage1(size: str, tokens: int) -> dict[str, Any]:
    tree = shared("stage1", steps=1_000_000, warmup=10_000, rate=1e-4, beta2=0.99, decay=1e-4)
    tree["experiment"]["init_weight"] = ""
    tree["optimizer"]["params"]["epsilon"] = 1e-8
    model = legacy_model(size, tokens, False) | {"pretrained_tokenizer_weight": VQGAN}
    return tree | {"model": {"vq_model": model}, "losses": {"quantizer_weight": 1.0}}


def stage2(size: str, tokens: int) -> dict[str, Any]:
    tree = shared("stage2", steps=500_000, warmup=5_000, rate=1e-4, beta2=0.999, decay=1e-4)
    tree["experiment"]["init_weight"] = "stage1.bin"
    tree["optimizer"]["params"]["discriminator_learning_rate"] = 2e-4
    model = legacy_model(size, tokens, True, 0.0) | {"pretrained_tokenizer_weight": VQGAN}
    losses = pixel_losses(20_000, 0.01, "convnext_s", 0.1) | {"quantizer_weight": 0.0}
    return tree | {"model": {"vq_model": model}, "losses": losses}


def text_aware(encoder: str, tokens: int, mode: str) -> dict[str, Any]:
    tree = shared("ta", steps=650_000, warmup=10_000, rate=1e-4, beta2=0.999, decay=1e-4)
    tree["optimizer"]["params"]["discriminator_learning_rate"] = 1e-4
    tree["dataset"]["params"] |= {
        "train_shards_path_or_url": DATACOMP,
        "dataset_with_class_label": False,
        "dataset_with_text_label": True,
    }
    tree["dataset"]["preprocessing"]["res_ratio_filtering"] = True
    losses = pixel_losses(200_000, 0.1, "lpips-convnext_s-1.0-0.1", 1.1)
    model = {
        "quantize_mode": mode,
        "token_size": 16,
        "vit_enc_model_size": encoder,
        "vit_dec_model_size": "large",
        "vit_enc_patch_size": 16,
        "vit_dec_patch_size": 16,
        "num_latent_tokens": tokens,
        "finetune_decoder": False,
        "is_legacy": False,
    }
    if mode == "vq":
        model |= {"codebook_size": 8192, "token_size": 64, "use_l2_norm": False, "commitment_cost": 0.25}
        model["clustering_vq"] = True
    else:
        losses |= {"kl_weight": 1e-6, "logvar_init": 0.0}
    return tree | {"model": {"vq_model": model}, "losses": losses}


def generator(**options: Any) -> dict[str, Any]:
    return {
        "hidden_size": 768,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 3072,
        "dropout": 0.1,
        "attn_drop": 0.1,
        "class_label_dropout": 0.1,
        "condition_num_classes": 1000,
        "randomize_temperature": 1.0,
    } | options


def generator_run(name: str, **numbers: Any) -> dict[str, Any]:
    tree = shared(name, beta2=0.96, decay=0.03, **numbers)
    del tree["experiment"]["output_dir"], tree["training"]["num_generated_images"]
    tree["dataset"]["preprocessing"]["random_crop"] = False
    tree["training"] |= {"per_gpu_batch_size": 64, "mixed_precision": "bf16"}
    return tree


def maskgit() -> dict[str, Any]:
    tree = generator_run("maskgit", steps=500_000, warmup=10_000, rate=2e-4)
    tree["experiment"]["tokenizer_checkpoint"] = "tokenizer_titok_b64.bin"
    options = generator(
        model_type="ViT",
        num_steps=8,
        image_seq_len="${model.vq_model.num_latent_tokens}",
        guidance_scale=4.5,
        guidance_decay="constant",
    )
    model = {"vq_model": legacy_model("base", 64, True), "generator": options}
    return tree | {"model": model, "losses": {"label_smoothing": 0.2, "loss_weight_unmasked_token": 0.3}}


def rar() -> dict[str, Any]:
    tree = generator_run("rar", steps=250_000, warmup=62_500, rate=4e-4)
    tree["training"]["use_ema"] = False
    tree["dataset"]["params"]["pretokenization"] = "maskgitvq.jsonl"
    vq_model = {
        "codebook_size": 1024,
        "token_size": 256,
        "num_latent_tokens": 256,
        "finetune_decoder": False,
        "pretrained_tokenizer_weight": VQGAN,
    }
    options = generator(
        image_seq_len=256,
        guidance_scale=16.0,
        guidance_scale_pow=2.75,
        use_checkpoint=False,
        randomness_anneal_start=125_000,
        randomness_anneal_end=187_500,
    )
    return tree | {"model": {"vq_model": vq_model, "generator": options}}
