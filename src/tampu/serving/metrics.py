"""Prometheus metrics, named in vLLM's style. Own registry: nothing global, nothing about HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from tampu.core.output import FinishReason
from tampu.core.stats import EngineStats
from tampu.serving.model_card import PUBLIC_MODEL_NAME

CONTENT_TYPE = CONTENT_TYPE_LATEST

_LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


class StatsSource(Protocol):
    """Whatever can say how the engine does."""

    def stats(self) -> EngineStats:
        """A snapshot."""


class _EngineCollector:
    """Reads the engine's own counters when somebody asks, so that counting costs the engine nothing."""

    def __init__(self, source: StatsSource, model: str) -> None:
        self._source = source
        self._model = model

    def collect(self) -> Iterator[Metric]:
        stats = self._source.stats()
        used = stats.num_blocks - stats.num_free_blocks
        gauges = (
            ("tampu:num_requests_running", "Requests in the running batch.", stats.num_running),
            ("tampu:num_requests_waiting", "Requests waiting to be scheduled.", stats.num_waiting),
            (
                "tampu:kv_cache_usage_perc",
                "Share of KV blocks in use by requests; 1 = all.",
                used / stats.num_blocks if stats.num_blocks else 0.0,
            ),
            ("tampu:kv_cache_blocks", "KV blocks that exist.", stats.num_blocks),
            ("tampu:prefix_cache_blocks", "KV blocks that hold a reusable prefix.", stats.num_cached_blocks),
        )
        counters = (
            ("tampu:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.",
             stats.prefix_cache_queries_total),
            ("tampu:prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits_total),
            ("tampu:prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens_total),
            ("tampu:generation_tokens", "Tokens generated.", stats.generated_tokens_total),
            ("tampu:num_preemptions", "Requests preempted for want of KV blocks.", stats.preemptions_total),
            ("tampu:request_aborts", "Requests aborted before they finished.", stats.aborts_total),
            ("tampu:engine_steps", "Steps of the engine.", stats.steps_total),
            ("tampu:runner_seconds", "Time spent inside the runner.", stats.runner_seconds_total),
        )  # fmt: skip
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            gauge.add_metric([self._model], value)
            yield gauge
        for name, text, value in counters:
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            counter.add_metric([self._model], value)
            yield counter


class Metrics:
    """Histograms and counters of finished work, and the engine's gauges once it is watched."""

    def __init__(self, model: str = PUBLIC_MODEL_NAME) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._model = model
        self._is_watching = False
        success = Counter(
            "tampu:request_success",
            "Requests finished, by reason.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._success = {reason: success.labels(model, reason.value) for reason in FinishReason}
        self._time_to_first_token = self._histogram(
            "tampu:time_to_first_token_seconds",
            "From the request's arrival to its first token.",
            _LATENCY_BUCKETS,
        )
        self._inter_token_latency = self._histogram(
            "tampu:inter_token_latency_seconds",
            "Between two tokens of one request.",
            _TOKEN_BUCKETS,
        )
        self._e2e_latency = self._histogram(
            "tampu:e2e_request_latency_seconds",
            "From the request's arrival to its last token.",
            _LATENCY_BUCKETS,
        )
        self._refused = Counter(
            "tampu:request_refused",
            "Requests answered with an error, by code.",
            ["model_name", "code"],
            registry=self.registry,
        )

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, ["model_name"], buckets=buckets, registry=self.registry).labels(self._model)

    def watch(self, engine: StatsSource) -> None:
        """Report this engine's gauges and counters. A second call changes nothing."""
        if self._is_watching:
            return
        self._is_watching = True
        self.registry.register(_EngineCollector(engine, self._model))

    def observe_first_token(self, seconds: float) -> None:
        """The first token of a request came."""
        self._time_to_first_token.observe(seconds)

    def observe_inter_token(self, seconds: float) -> None:
        """Another token came."""
        self._inter_token_latency.observe(seconds)

    def observe_finished(self, reason: FinishReason, seconds: float) -> None:
        """A request ended."""
        self._success[reason].inc()
        self._e2e_latency.observe(seconds)

    def count_refused(self, code: int) -> None:
        """A request was answered with this error code."""
        self._refused.labels(self._model, str(code)).inc()

    def render(self) -> bytes:
        """The text a Prometheus server scrapes."""
        return generate_latest(self.registry)
