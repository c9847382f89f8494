"""transformers' DeepseekV3 as the judge: an implementation that nobody here wrote."""

from __future__ import annotations

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
    def generate(self, prompt: list[int], new_tokens: int) -> list[int]:
        """Greedy continuation, exactly `new_tokens` long."""
        tokens = self.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return tokens[0, len(prompt) :].tolist()

    @torch.inference_mode()
    def experts(self, tokens: list[int]) -> dict[int, Tensor]:
        """Per layer the experts [T, K] of a forward pass over `tokens`."""
        chosen: dict[int, Tensor] = {}

        def keep(number: int) -> None:
            def hook(module: object, inputs: object, outputs: tuple[Tensor, ...]) -> None:
                chosen[number] = outputs[2]

            handles.append(self.routers[number].register_forward_hook(hook))

        handles: list[torch.utils.hooks.RemovableHandle] = []
        for number in self.routers:
            keep(number)
        self.model(torch.tensor([tokens]))
        for handle in handles:
            handle.remove()
        return chosen

    @torch.inference_mode()
    def route(self, layer: int, hidden_states: Tensor) -> Tensor:
        """Experts [T, K] that the layer's router module picks for given hidden states [T, H]."""
        experts: Tensor = self.routers[layer](hidden_states.float())[2]
        return experts
