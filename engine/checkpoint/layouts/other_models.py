"""Which other model a file is of, by the names of its tensors: for the error that refuses it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

# Parts of names that each model has, and that the models after it in this list may have too.
_PARTS = {
    "double_stream_modulation_img.": "FLUX.2",
    "distilled_guidance_layer.": "Chroma",
    "double_blocks.0.img_attn": "FLUX.1 or a model like it",
    "single_transformer_blocks.0.": "FLUX.1 or a model like it",
    "joint_blocks.0.": "Stable Diffusion 3",
    "transformer_blocks.0.img_mod": "Qwen-Image",
    "noise_refiner.0.": "Z-Image or Lumina",
    "patchify_proj.": "LTX-Video",
    "blocks.0.cross_attn.k.": "Wan or a model like it",
    "input_blocks.1.": "Stable Diffusion 1, 2 or XL",
    "down_blocks.0.resnets.0.time_emb_proj.": "Stable Diffusion 1, 2 or XL",
    "SelfAttention.relative_attention_bias.": "the text encoder T5",
    "text_model.encoder.layers.0.": "the text encoder CLIP",
    "self_attn.q_proj.": "a language model",
    "blk.0.attn_q.": "a language model",
}
_ARCHITECTURE = "general.architecture"
# What files of Krea 2 say, and converters that know no better.
_SAYS_NOTHING = ("krea2", "pig", "cow", "unknown", "")
_LONGEST = 40  # characters


def other_model(names: Collection[str], metadata: Mapping[str, str]) -> str | None:
    """Return what these tensors are of, for people; None if that is not known. metadata: of the file."""
    said = _architecture(metadata)
    for part, model in _PARTS.items():
        if any(part in name for name in names):
            return model + said
    return f"another model{said}" if said else None


def language_model(metadata: Mapping[str, str]) -> str:
    """Return what a language model is that has not what Krea 2's text encoder has. metadata: of the file."""
    return "another language model" + (_architecture(metadata) or ", such as Qwen2.5-VL")


def _architecture(metadata: Mapping[str, str]) -> str:
    """What a GGUF file calls its architecture, for people; empty if it says nothing."""
    architecture = metadata.get(_ARCHITECTURE, "")[:_LONGEST]
    return "" if architecture in _SAYS_NOTHING else f" ({_ARCHITECTURE} {architecture})"
