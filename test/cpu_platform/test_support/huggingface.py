"""transformers' DeepseekV3 as the judge: an implementation that nobody here wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import DeepseekV3ForCausalLM


class HuggingFace:
    """A checkpoint in float32 on the CPU; bfloat16 weights are upcast exactly."""

    def __init__(self, path: Path) -> None:
        self.model = DeepseekV3ForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.routers = {
            number: layer.mlp.gate
            for number, layer in enumerate(self.model.model.layers)
            if hasattr(layer.mlp, "gate")
        }

    @torch.inference_mode()
    def follow(self, prompt: list[int], output: list[int]) -> tuple[bool, dict[int, Tensor]]:
        """Is `output` the greedy continuation, and which experts [T, K] run per layer?

        One pass over prompt and output: every token of the output is checked against the
        argmax of what precedes it, so all agree if and only if greedy decoding gives them.
        """
        chosen: dict[int, Tensor] = {}

        def keep(number: int) -> Callable[..., None]:
            def hook(module: object, inputs: object, outputs: tuple[Tensor, ...]) -> None:
                chosen[number] = outputs[2]

            return hook

        handles = [
            router.register_forward_hook(keep(number)) for number, router in self.routers.items()
        ]
        logits = self.model(torch.tensor([prompt + output[:-1]])).logits[0]
        for handle in handles:
            handle.remove()
        greedy = logits[len(prompt) - 1 :].argmax(dim=1).tolist()
        return greedy == output, chosen

    @torch.inference_mode()
    def route(self, layer: int, hidden_states: Tensor) -> Tensor:
        """Experts [T, K] that the layer's router module picks for given hidden states [T, H]."""
        experts: Tensor = self.routers[layer](hidden_states.float())[2]
        return experts
