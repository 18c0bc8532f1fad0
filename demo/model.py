"""The demo's model: the transformer and the text encoder, their sizes, and how they are used together."""

from pathlib import Path

import torch
from diffusers import Krea2Transformer2DModel
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLModel

from demo.latents import patches, unpatched
from demo.tokenizer import adapt_embeddings

TRANSFORMER = {
    "in_channels": 64,
    "num_layers": 6,
    "attention_head_dim": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 352,
    "timestep_embed_dim": 128,
    "text_hidden_dim": 96,
    "num_text_layers": 3,
    "text_num_attention_heads": 4,
    "text_num_key_value_heads": 4,
    "text_intermediate_size": 192,
    "num_layerwise_text_blocks": 1,
    "num_refiner_text_blocks": 1,
    "axes_dims_rope": (4, 6, 6),
}
TAPS = (0, 1, 2)
PREFIX_TOKENS = 34


def text_config(vocabulary: int) -> Qwen3VLConfig:
    return Qwen3VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 24,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 4, 4],
                "mrope_interleaved": True,
            },
        },
        # Loaders expect the vision tower; prompts never reach it.
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "num_position_embeddings": 16,
            "out_hidden_size": 96,
            "patch_size": 4,
            "deepstack_visual_indexes": [0],
        },
    )


class Model(nn.Module):
    """The two that are trained, and how they are used together."""

    def __init__(self, transformer: Krea2Transformer2DModel, text_encoder: Qwen3VLModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder

    @classmethod
    def random(cls, vocabulary: int) -> "Model":
        transformer = Krea2Transformer2DModel(**TRANSFORMER)
        with torch.no_grad():
            for block in transformer.transformer_blocks:
                for linear in (block.attn.to_out[0], block.ff.down):
                    linear.weight.mul_(0.3)
            transformer.final_layer.linear.weight.zero_()
        return cls(transformer, Qwen3VLModel(text_config(vocabulary)))

    @classmethod
    def load(cls, folder: Path) -> "Model":
        return cls(
            Krea2Transformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32),
            Qwen3VLModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        )

    @torch.no_grad()
    def adapt(self, old: Tokenizer, new: Tokenizer) -> None:
        """Take on another vocabulary."""
        rows = adapt_embeddings(old, new, self.text_encoder.get_input_embeddings().weight)
        self.text_encoder.resize_token_embeddings(len(rows), mean_resizing=False)
        self.text_encoder.get_input_embeddings().weight.copy_(rows)

    def save(self, folder: Path) -> None:
        self.transformer.save_pretrained(folder / "transformer")
        self.text_encoder.save_pretrained(folder / "text_encoder")

    def trained(self) -> dict[str, nn.Parameter]:
        """All parameters that prompts use."""
        unused = ("text_encoder.visual.", "text_encoder.language_model.norm.", "text_encoder.language_model.layers.2.")
        return {name: p for name, p in self.named_parameters() if not name.startswith(unused)}

    def text(self, tokens: Tensor) -> Tensor:
        """(batch, n) token ids of whole texts → (batch, n − 34, 3, 96)."""
        states = self.text_encoder.language_model(input_ids=tokens, output_hidden_states=True).hidden_states
        return torch.stack([states[tap][:, PREFIX_TOKENS:] for tap in TAPS], dim=2)

    def velocity(self, latents: Tensor, text: Tensor, sigma: Tensor) -> Tensor:
        """Of noisy latents (batch, 16, h, w) at sigma (batch,), with `text` of the same batch; as tokens
        (batch, h / 2 · w / 2, 64)."""
        rows, columns = latents.shape[2] // 2, latents.shape[3] // 2
        grid = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in (1, rows, columns)))
        positions = torch.cat([torch.zeros(text.shape[1], 3), grid])
        return self.transformer(patches(latents), text, sigma, positions, return_dict=False)[0]

    def guided(self, latents: Tensor, text: Tensor, empty: Tensor, sigma: Tensor, guidance: float | Tensor) -> Tensor:
        """The velocity as latents, (batch, 16, h, w), with Krea's guidance: v + guidance · (v − v of no caption).

        empty: the text of no caption, (1, n, 3, 96). guidance: one for all, or (batch, 1, 1, 1).
        """
        v = unpatched(self.velocity(latents, text, sigma), *latents.shape[2:])
        free = self.velocity(latents, empty.expand(len(latents), -1, -1, -1), sigma)
        return v + guidance * (v - unpatched(free, *latents.shape[2:]))

    def forward(self, latents: Tensor, tokens: Tensor, sigma: Tensor) -> Tensor:
        return self.velocity(latents, self.text(tokens), sigma)

    def compile(self) -> None:
        fusion = self.transformer.text_fusion
        for block in (*fusion.layerwise_blocks, *fusion.refiner_blocks, *self.transformer.transformer_blocks):
            block.compile(dynamic=True)
