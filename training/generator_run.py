"""A generator training run: its settings and its parts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from common import distributed
from common.build import ConfigError
from common.config import to_tree
from common.console import warn
from data.source import Source
from data.token_exchange import open_tokens
from data.token_memmap import TokenMemmap
from data.token_view import SplitTokens
from modeling.factory import build_generator
from modeling.generators.base import Generator
from modeling.pretrained.loading import load_tokenizer, require_tokenizer
from modeling.pretrained.model_names import shown_name
from modeling.sampling.draw import numbers_needed, settings_for
from modeling.token_factors import TokenFactors
from modeling.tokenizers.base import Tokenizer
from modeling.tokenizers.sub_tokens import SubTokenView, equal_factors, suggest_factors
from storage.locks import reserved_folder
from storage.weights import weight_hash
from training.accelerator import start
from training.auto_settings import settle, warn_of_batch
from training.evaluation import SampleEvaluator
from training.generator_settings import GeneratorRun
from training.plan_checks import short_generator_run
from training.run_lengths import begun_again, in_steps
from training.small_data import DataFacts, default, generator_advice, say_advice, trained
from training.tasks import GENERATOR_TASKS
from training.tasks.token_prediction import TokenPredictionTask
from training.tokenizer_run import build_images
from training.trainer import Trainer

LARGEST_SOFTMAX = 2**17  # codes; above it the table and the logits outweigh the transformer


@dataclass(frozen=True)
class TokenOrigin:
    """The tokens that a generator learns, and the tokenizer that made them; sizes are those of whole tokens."""

    source: Source  # with `factors` of sub-tokens
    codebook_size: int
    num_tokens: int
    image_size: int
    tokenizer: str
    weight_hash: str  # of the tokenizer; empty if unknown
    factors: TokenFactors | None = None

    @property
    def whole(self) -> dict[str, int]:
        """The sizes of token files that belong together."""
        sizes = {"codebook_size": self.codebook_size, "num_tokens": self.num_tokens}
        return sizes | {"num_classes": len(self.source.class_names)}

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of a generator that follow from its tokens."""
        if self.factors is None:
            return self.whole
        count = self.num_tokens * len(self.factors)
        return self.whole | {"codebook_size": self.factors.sizes[0], "num_tokens": count}

    def split(self, source: Source) -> Source:
        """Tokens of a source as the generator learns them."""
        if self.factors is None or source.item_key != "tokens":
            return source  # images become sub-tokens when the tokenizer encodes them
        return SplitTokens(source, self.factors.split, len(self.factors))


def train_generator(run: GeneratorRun) -> None:
    """Train to the end, from the newest checkpoint if there is one.

    Raises:
        ConfigError, FileNotFoundError, CheckpointError: a setting or a file does not fit; before any training.
        ValueError, WriteError: another job trains in the run folder, or it cannot be written.
    """
    accelerator = start(run.training, run.experiment)
    with reserved_folder(run.experiment.output_dir, key="experiment.output_dir", training=True):
        _train(run, accelerator)


def _train(run: GeneratorRun, accelerator: Accelerator) -> None:
    settle(run, accelerator)
    what = run.data.tokens or "data.images"
    tokenizer, origin = _factored(run, *_open_data(run, accelerator.device))
    for key, size in origin.sizes.items():
        if run.generator.setdefault(key, size) != size:
            raise ConfigError(f"generator.{key}={run.generator[key]!r}, but {what} has {size}")
    torch.manual_seed(run.experiment.seed)  # again: loading a tokenizer has drawn numbers
    generator = build_generator(run.generator)
    _check_softmax(run, generator)
    validation = _open_validation(run, origin, tokenizer)
    sampling = settings_for(generator, run.sampling)
    try:
        numbers_needed(generator, sampling)  # refuses settings that do not fit
    except ValueError as error:
        raise ConfigError(f"sampling.{error}") from error
    run.sampling = dict(vars(sampling))
    run.tokens = {
        "tokenizer": run.data.tokenizer or origin.tokenizer,
        "weight_hash": origin.weight_hash,
        "class_names": list(origin.source.class_names),
        "image_size": origin.image_size,
    }
    if origin.factors is not None:
        run.tokens["factors"] = list(origin.factors.sizes)
    kind, key = _way_of_learning(run, generator)  # before `to_tree`: the run is stored with its defaults
    steps = in_steps(run, run.training.max_steps)  # `run` keeps its shares: it is what is stored
    _warn_of_lengths(run, steps)
    _advise(run, generator, origin)
    task = kind(
        generator=generator,
        validation=validation,
        tokenizer=tokenizer,
        settings=getattr(steps, key),
        sampling=sampling,
        optimizer=run.optimizer,
        seed=run.experiment.seed,
        batch_size=run.training.per_gpu_batch_size,
        samples=_sample_evaluator(run, tokenizer, sampling, accelerator.device),
    )
    warn_of_batch(run, task, accelerator.device)
    Trainer(
        task=task,
        source=origin.source,
        accelerator=accelerator,
        experiment=run.experiment,
        training=run.training,
        schedule=steps.schedule,
        config=to_tree(run),
    ).fit()


def _open_data(run: GeneratorRun, device: torch.device) -> tuple[Tokenizer | None, TokenOrigin]:
    """The tokenizer, if there is one, and the training examples; checks that they belong together."""
    data = run.data
    tokenizer = load_tokenizer(data.tokenizer, device) if data.tokenizer else None
    if data.tokens is not None:
        tokens = _open_tokens(run, data.tokens, tokenizer)
        header = tokens.header
        if tokenizer is not None:
            name = shown_name(data.tokenizer)
            require_tokenizer(tokenizer, header.weight_hash, what=data.tokens, tokenizer_name=name)
        sizes = (header.codebook_size, header.num_tokens, header.image_size)
        return tokenizer, TokenOrigin(tokens, *sizes, header.tokenizer, header.weight_hash)
    name = shown_name(data.tokenizer)
    if not tokenizer.is_discrete:
        raise ConfigError(
            f"data.tokenizer={name} has a continuous bottleneck; generators learn discrete tokens"
        )
    images = build_images("data.images", data.images, tokenizer.image_size)
    sizes = (tokenizer.codebook_size, tokenizer.num_tokens, tokenizer.image_size)
    return tokenizer, TokenOrigin(images, *sizes, name, weight_hash(tokenizer))


def _factored(
    run: GeneratorRun, tokenizer: Tokenizer | None, origin: TokenOrigin
) -> tuple[Tokenizer | None, TokenOrigin]:
    """Both, split into sub-tokens if the run says so."""
    if run.data.factors is None:
        return tokenizer, origin
    if run.generator.get("factors") is not None:
        raise ConfigError(
            f"data.factors={run.data.factors} and generator.factors={run.generator['factors']} are both given;"
            f" generator.name={run.generator['name']!r} takes whole tokens, which it splits by itself"
        )
    factors = equal_factors(run.data.factors)
    try:
        factors.check(origin.codebook_size)
    except ValueError as error:
        raise ConfigError(f"data.{error}") from error
    if tokenizer is not None:
        tokenizer = SubTokenView(tokenizer=tokenizer, factors=run.data.factors)
    origin = replace(origin, factors=factors)
    return tokenizer, replace(origin, source=origin.split(origin.source))


def _check_softmax(run: GeneratorRun, generator: Generator) -> None:
    size = max(generator.factors)
    if size > LARGEST_SOFTMAX:
        found = suggest_factors(size)
        advice = (
            f"data.factors={found} makes" if found else "data.factors (no equal sizes fit here) would make"
        )
        warn(
            f"generator.name={run.generator['name']!r} chooses among {size} codes by one softmax; {advice} sub-tokens"
            " of them, or take generator.name=factorized_ar, which has a softmax per part of a token"
        )


def _open_tokens(run: GeneratorRun, path: str, tokenizer: Tokenizer | None) -> TokenMemmap:
    """A token file; the generator's section and the tokenizer give what files of other programs leave out."""
    about = {key: run.generator.get(key) for key in ("codebook_size", "num_classes")}
    if tokenizer is not None:
        about |= {"codebook_size": tokenizer.codebook_size, "image_size": tokenizer.image_size}
        about["tokenizer"] = shown_name(run.data.tokenizer)
    if run.data.factors is not None:  # the generator's codebook is of sub-tokens, files hold whole tokens
        about["codebook_size"] = equal_factors(run.data.factors).codebook_size
    return open_tokens(Path(path), **{key: value for key, value in about.items() if value is not None})


def _open_validation(run: GeneratorRun, origin: TokenOrigin, tokenizer: Tokenizer | None) -> Source | None:
    data = run.data
    if data.validation is None:
        return None
    validation, what = _open_tokens(run, data.validation, tokenizer), data.tokens or "data.images"
    # An empty hash belongs to an imported file, whose tokenizer is not known.
    hashes = {validation.header.weight_hash, origin.weight_hash} - {""}
    if len(hashes) > 1:
        raise ConfigError(f"{data.validation} and {what} differ in weight_hash: another tokenizer made them")
    for key, wanted in origin.whole.items():
        held = len(validation.class_names) if key == "num_classes" else getattr(validation.header, key)
        if held != wanted:
            raise ConfigError(f"{data.validation} and {what} differ in {key}: {held} and {wanted}")
    names = [list(validation.class_names), list(origin.source.class_names)]
    numbers = [str(label) for label in range(len(names[0]))]  # imported files know no names
    if names[0] != names[1] and numbers not in names:
        raise ConfigError(f"{data.validation} and {what} differ in class_names")
    return origin.split(validation)


def _sample_evaluator(
    run: GeneratorRun, tokenizer: Tokenizer | None, sampling: Any, device: torch.device
) -> SampleEvaluator | None:
    if not run.evaluation.metrics:
        return None
    if tokenizer is None:
        raise ConfigError("evaluation.metrics needs data.tokenizer, which makes images of tokens")
    return SampleEvaluator(
        run.evaluation,
        tokenizer=tokenizer,
        sampling=sampling,
        seed=run.experiment.seed,
        batch_size=run.training.per_gpu_batch_size,
        device=device,
    )


def _warn_of_lengths(run: GeneratorRun, steps: GeneratorRun) -> None:
    lines = short_generator_run(steps.training, steps.schedule, steps.rar)
    folder = Path(run.experiment.output_dir)
    for line in (*lines, *distributed.on_main(lambda: begun_again(run, run.training.max_steps, folder))):
        warn(line)


def _advise(run: GeneratorRun, generator: Generator, origin: TokenOrigin) -> None:
    source = origin.source
    facts = DataFacts(
        images=len(source),
        classes=len(source.class_names),
        epochs=run.training.max_steps * run.training.global_batch / len(source),
        parameters=trained(generator),
        numbers=origin.sizes["num_tokens"],
        unit="token",
    )
    lines = generator_advice(
        facts,
        run.training,
        dropout=run.generator.get("dropout", default(type(generator), "dropout")),
        validation=run.data.validation is not None,
        crops=source.header.crops if isinstance(source, TokenMemmap) else None,
    )
    say_advice(facts, lines)


def _way_of_learning(run: GeneratorRun, generator: Generator) -> tuple[type[TokenPredictionTask], str]:
    """The task, and the key of its section, which is filled in if the run gives none."""
    task, key = GENERATOR_TASKS[generator.kind]
    for _, other in GENERATOR_TASKS.values():
        if other != key and getattr(run, other) is not None:
            raise ConfigError(
                f"section {other} is not used with generator.name={run.generator['name']!r}, which learns by section"
                f" {key}; remove it"
            )
    if getattr(run, key) is None:
        setattr(run, key, task.default_settings(generator))
    return task, key
