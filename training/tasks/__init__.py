"""How models learn: the task of every way of learning that a tokenizer or a generator names as its own."""

from training.tasks.feature_distillation import CodebookFittingTask, FeatureDistillationTask
from training.tasks.proxy_codes import ProxyCodesTask
from training.tasks.reconstruction import ReconstructionTask
from training.tasks.token_prediction import MaskGITTask, RARTask, TokenPredictionTask
from training.tasks.tokenizer import TokenizerTask

# By `Tokenizer.learns`.
TOKENIZER_TASKS: dict[str, type[TokenizerTask]] = {
    "pixels": ReconstructionTask,
    "codes": ProxyCodesTask,
    "features": FeatureDistillationTask,
    "codebook": CodebookFittingTask,
}

# By `Generator.kind`; the second is the run's section with the settings of the task.
GENERATOR_TASKS: dict[str, tuple[type[TokenPredictionTask], str]] = {
    "autoregressive": (RARTask, "rar"),
    "masked": (MaskGITTask, "maskgit"),
}
