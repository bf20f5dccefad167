"""Builds the objects of one process, bottom up, each once. The only place that knows every concrete class.

Imports are inside the functions: `tampu serve --mock` must not pay for the engine, nor `tampu --help` for the server.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tampu.core.config import CpuRunnerConfig, EngineConfig
from tampu.core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from tampu.engine.engine import Engine
    from tampu.engine.runner_protocol import ModelRunner
    from tampu.model.checkpoint import Checkpoint
    from tampu.serving.embeddings import EmbeddingService
    from tampu.serving.generator import Generator
    from tampu.serving.metrics import Metrics
    from tampu.serving.model_card import ModelCard


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the engine commands share, as given on the command line."""

    model: str | None
    runner: str
    engine: EngineConfig
    cpu: CpuRunnerConfig


@dataclass(frozen=True, slots=True)
class RunnerFacts:
    """What the banner says of the runner."""

    device: str
    kv_cache: str = ""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A loaded model whose engine is running."""

    engine: Engine
    generator: Generator
    metrics: Metrics
    card: ModelCard
    runner_facts: RunnerFacts
    file_bytes: int
    load_seconds: float
    asked_model_len: int | None  # --max-model-len

    @property
    def window_notice(self) -> str | None:
        """Why a request may hold less than was asked for or the model was made for, and what would change that."""
        card, asked = self.card, self.asked_model_len
        if card.is_context_cut:
            room = f"A request may hold {card.max_model_len:,} of the model's {card.model_context_len:,} tokens"
            if card.max_model_len < card.kv_capacity_tokens:
                return f"{room}, as --max-model-len says."
            return f"{room}: the KV cache holds no more. Give it more memory with --kv-cache-mb."
        if asked is not None and asked > card.max_model_len:
            return f"A request may hold {card.max_model_len:,} tokens, not {asked:,}: the model was made for no more."
        return None

    def close(self) -> None:
        """Stop the engine and free what it held. Idempotent."""
        self.generator.close()
        self.engine.close()  # its thread closes the runner


def resolve_model(model: str | None) -> Path:
    """The weights to serve: the named ones, or the bundled ones. Raises CheckpointError when there are none."""
    from tampu.model.bundled import bundled_model_path

    if model is not None:
        from tampu.model.hub import resolve_model as resolve_named

        return resolve_named(model)
    bundled = bundled_model_path()
    if bundled is None:
        raise CheckpointError(
            "bundled model", "not installed: run `make serve`, or name weights of your own with --model"
        )
    return bundled


def build_runner(settings: EngineSettings, checkpoint: Checkpoint) -> ModelRunner:
    """The runner named in the settings, not loaded yet."""
    if settings.runner == "cpu":
        from tampu.runner.cpu import CpuRunner

        return CpuRunner(checkpoint, settings.engine, settings.cpu)
    if settings.runner == "reference":
        from tampu.runner.reference import ReferenceRunner

        return ReferenceRunner(checkpoint, settings.engine, kv_cache_dtype=settings.cpu.kv_cache_dtype)
    raise ConfigError("runner", f"{settings.runner!r} is not one of cpu, reference")


def load_embeddings(path: str | None, settings: EngineSettings) -> EmbeddingService | None:
    """The embedding model in the named folder, or the bundled one; None when that is not installed."""
    from tampu.model.bert import open_bert
    from tampu.model.bundled import bundled_embedding_path
    from tampu.runner.bert import BertEncoder
    from tampu.serving.embedder import EmbeddingCard
    from tampu.serving.embeddings import EmbeddingService
    from tampu.text.wordpiece import load_wordpiece

    folder = Path(path) if path is not None else bundled_embedding_path()
    if folder is None:
        return None
    checkpoint = open_bert(folder)
    try:
        pooling = checkpoint.pooling
        tokenizer = load_wordpiece(checkpoint.tokenizer_spec, max_length=pooling.max_seq_length, prompt=pooling.prompt)
        encoder = BertEncoder(checkpoint, num_threads=settings.cpu.num_threads, isa=settings.cpu.isa)
    finally:
        checkpoint.close()
    card = EmbeddingCard(
        weights_name="all-MiniLM-L6-v2" if path is None else checkpoint.name,
        dimensions=encoder.dimensions,
        max_tokens=pooling.max_seq_length,
        file=str(folder),
        num_parameters=checkpoint.num_parameters,
        pooling=pooling.mode,
        created_at=int(folder.stat().st_mtime),
    )
    return EmbeddingService(card, tokenizer, encoder)


def weights_name(checkpoint: Checkpoint) -> str:
    """What people call these weights: the file's name, as metadata names are often training jargon, or the folder's."""
    return checkpoint.path.stem if checkpoint.path.is_file() else checkpoint.name


def runner_facts(runner: ModelRunner, settings: EngineSettings) -> RunnerFacts:
    """Facts only the native runner has more of."""
    if settings.runner != "cpu":
        return RunnerFacts("reference runner (NumPy)")
    from tampu.cli.banner import megabytes
    from tampu.runner.cpu import CpuRunner

    assert isinstance(runner, CpuRunner)
    return RunnerFacts(
        device=f"{runner.isa}, {runner.num_threads} threads, {runner.activations} activations",
        kv_cache=f" ({megabytes(runner.kv_cache_bytes)}, {runner.kv_cache_dtype})",
    )


def load_model(settings: EngineSettings) -> LoadedModel:
    """Open the checkpoint, build what stands above it and start the engine."""
    from tampu.engine.engine import Engine
    from tampu.model.checkpoint import open_checkpoint
    from tampu.serving.codec import ChatCodec
    from tampu.serving.generator import Generator
    from tampu.serving.metrics import Metrics
    from tampu.serving.model_card import ModelCard
    from tampu.text.chat_template import chat_template
    from tampu.text.tokenizer import load_tokenizer

    started = time.perf_counter()
    checkpoint = open_checkpoint(resolve_model(settings.model))
    try:
        tokenizer = load_tokenizer(checkpoint.tokenizer_spec)
        runner = build_runner(settings, checkpoint)
        runner.load()
        engine = Engine(
            runner,
            settings.engine,
            checkpoint.config.max_position_embeddings,
            vocab_size=checkpoint.config.vocab_size,
        )
        metrics = Metrics()
        generator = Generator(engine, ChatCodec(tokenizer, chat_template(checkpoint.chat_template)), metrics)
        generator.start()
        card = ModelCard(
            weights_name=weights_name(checkpoint),
            file=str(checkpoint.path),
            quantization=checkpoint.quantization,
            num_parameters=checkpoint.num_parameters,
            max_model_len=engine.max_model_len,
            model_context_len=checkpoint.config.max_position_embeddings,
            kv_capacity_tokens=runner.num_blocks() * settings.engine.block_size,
            chat_template=checkpoint.chat_template,
            created_at=int(checkpoint.path.stat().st_mtime),
            notices=checkpoint.notices,
        )
    finally:
        checkpoint.close()
    return LoadedModel(
        engine=engine,
        generator=generator,
        metrics=metrics,
        card=card,
        runner_facts=runner_facts(runner, settings),
        file_bytes=checkpoint.file_bytes,
        load_seconds=time.perf_counter() - started,
        asked_model_len=settings.engine.max_model_len,
    )
