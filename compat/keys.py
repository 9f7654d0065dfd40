"""The keys of the run files of the original code release, except those of `model` (models.py)."""

TRAIN_SHARDS = "dataset.params.train_shards_path_or_url"
EVAL_SHARDS = "dataset.params.eval_shards_path_or_url"
TOKEN_FILE = "dataset.params.pretokenization"
CAPTIONS, CLASSES = "dataset.params.dataset_with_text_label", "dataset.params.dataset_with_class_label"
CROP_SIZE, FILTERING = "dataset.preprocessing.crop_size", "dataset.preprocessing.res_ratio_filtering"
PEAK, BASE = "optimizer.params.learning_rate", "lr_scheduler.params.learning_rate"

SECTIONS = ("experiment", "model", "losses", "dataset", "optimizer", "lr_scheduler", "training")
NESTED = ("optimizer.params", "lr_scheduler.params", "dataset.params", "dataset.preprocessing")
# Sections whose `name` decides which other options there are.
NAMED = (
    "tokenizer",
    "tokenizer.quantizer",
    "generator",
    "discriminator",
    "data.train",
    "data.validation",
    "data.images",
)
TRANSFORM = ("image_size", "resize_shorter_edge", "random_crop", "random_flip")

# Key of the original -> key of ours with the same meaning.
RENAMED = {
    "experiment.project": "experiment.project",
    "experiment.name": "experiment.name",
    "experiment.output_dir": "experiment.output_dir",
    "experiment.save_every": "training.save_every",
    "experiment.eval_every": "training.evaluate_every",
    "experiment.generate_every": "training.preview_every",
    "experiment.log_every": "training.log_every",
    "dataset.params.num_workers_per_gpu": "training.num_workers",
    PEAK: "optimizer.learning_rate",
    "optimizer.params.beta1": "optimizer.beta1",
    "optimizer.params.beta2": "optimizer.beta2",
    "optimizer.params.weight_decay": "optimizer.weight_decay",
    "lr_scheduler.scheduler": "schedule.name",
    "lr_scheduler.params.warmup_steps": "schedule.warmup_steps",
    "lr_scheduler.params.end_lr": "schedule.end_lr",
    "training.gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "training.per_gpu_batch_size": "training.per_gpu_batch_size",
    "training.mixed_precision": "training.mixed_precision",
    "training.max_grad_norm": "training.max_grad_norm",
    "training.max_train_steps": "training.max_steps",
    "training.seed": "experiment.seed",
}
RENAMED_OF = {
    "tokenizer": {
        "optimizer.params.discriminator_learning_rate": "discriminator_learning_rate",
        "losses.quantizer_weight": "losses.quantizer_weight",
        "losses.reconstruction_loss": "losses.reconstruction_loss",
        "losses.reconstruction_weight": "losses.reconstruction_weight",
        "losses.perceptual_weight": "losses.perceptual_weight",
        "losses.discriminator_start": "losses.discriminator_start",
        "losses.discriminator_factor": "losses.discriminator_factor",
        "losses.discriminator_weight": "losses.discriminator_weight",
        "losses.lecam_regularization_weight": "losses.lecam_regularization_weight",
        "losses.lecam_ema_decay": "losses.lecam_ema_decay",
        "losses.kl_weight": "losses.kl_weight",
        "losses.logvar_init": "losses.logvar_init",
    },
    "generator": {
        "losses.label_smoothing": "maskgit.label_smoothing",
        "losses.loss_weight_unmasked_token": "maskgit.unmasked_weight",
    },
}
# Keys without a single counterpart; the functions below read them.
HANDLED = (
    "experiment.resume",
    "training.enable_wandb",
    "training.enable_tf32",
    "training.use_ema",
    "optimizer.name",
    BASE,
    TRAIN_SHARDS,
    EVAL_SHARDS,
    CAPTIONS,
    CLASSES,
    CROP_SIZE,
    FILTERING,
    "dataset.preprocessing.resize_shorter_edge",
    "dataset.preprocessing.random_crop",
    "dataset.preprocessing.random_flip",
)
HANDLED_OF = {
    "tokenizer": ("losses.perceptual_loss", "experiment.init_weight"),
    "generator": ("experiment.tokenizer_checkpoint", "experiment.init_weight", TOKEN_FILE),
}
# Known keys that change nothing here, and why.
UNUSED = {
    "experiment.max_train_examples": "sources know their length; the original counts nominal epochs by it",
    "experiment.log_grad_norm_every": "the norm of the whole gradient is logged with everything else",
    "experiment.logging_dir": "trackers write into the run folder",
    "experiment.generator_checkpoint": "names weights to sample from",
    "optimizer.params.epsilon": "the original does not read it either; optimizer.epsilon is read",
    "training.num_generated_images": "previews have a fixed number of pictures",
}
REQUIRED_WITH_PIXELS = (
    "discriminator_start",
    "discriminator_factor",
    "discriminator_weight",
    "perceptual_loss",
    "perceptual_weight",
    "reconstruction_loss",
    "reconstruction_weight",
    "lecam_regularization_weight",
)
