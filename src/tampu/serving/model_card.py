"""Which model answers under which name: the public name, and the weights that really stand behind it."""

from __future__ import annotations

from dataclasses import dataclass

PUBLIC_MODEL_NAME = "@cf/meta/llama-3.1-8b-instruct-fast"
# The pricing page's spelling of the same model.
PUBLIC_MODEL_ALIASES = ("@cf/meta/llama-3.1-8b-instruct-fp8-fast",)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Facts for the banner, the catalogue and the models endpoint. Never says more than the file does."""

    weights_name: str  # the model's own name, for example "SmolLM2-135M-Instruct"
    name: str = PUBLIC_MODEL_NAME
    aliases: tuple[str, ...] = PUBLIC_MODEL_ALIASES
    file: str = ""  # path or repository of the weights
    quantization: str = ""  # for example "Q4_1"
    num_parameters: int = 0
    max_model_len: int = 0  # tokens a request may hold here, prompt and answer together
    model_context_len: int = 0  # what the model was made for
    kv_capacity_tokens: int = 0  # over all requests
    chat_template: str = "none"
    created_at: int = 0  # epoch seconds, for OpenAI's models list
    is_mock: bool = False
    notices: tuple[str, ...] = ()

    def accepts(self, model: str) -> bool:
        """True when `model` means this model."""
        return model == self.name or model in self.aliases

    @property
    def is_context_cut(self) -> bool:
        """True when a request may hold less here than the model was made for."""
        return self.max_model_len < self.model_context_len

    @property
    def is_stand_in(self) -> bool:
        """True when other weights than the public name's answer."""
        return "llama-3.1-8b" not in self.weights_name.lower().replace("_", "-").replace(" ", "-")
