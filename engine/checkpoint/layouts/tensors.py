"""Every tensor of Krea 2: its name in diffusers or transformers, its shape, how ranks split it, and where it goes.

Pure Python. This one list drives loading, `krea2 info` and the checks of a checkpoint's headers; the modules in
`engine.model` have parameters of the same names. Matrices that are used together are stacked into one parameter, in
the order in which they are listed here: a rank's q, k, v and gate rows become one `qkvg`, its gate and up rows one
`gate_up`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from engine.config.components import VAE_ENCODER, TransformerConfig, VAEConfig
from engine.config.model_config import ModelConfig

ROWS, COLUMNS = 0, 1


@dataclass(frozen=True)
class Source:
    """One tensor of a checkpoint, and the parameter (or the rows of one) that it fills.

    shape: of the whole tensor in the file.
    split: the dimension that is divided evenly over the ranks; None: whole on every rank.
    float32: keep it in float32 whatever the model's dtype (norm weights and modulation tables).
    offset: is added at load; 1 for Krea's zero-centred norms, so that no forward has to.
    last_frame: of a causal 3-D convolution only the last temporal slice, which at one frame is all that counts.
    flatten: drop the trailing dimensions of size one (the VAE's norms).
    """

    name: str
    shape: tuple[int, ...]
    parameter: str
    split: int | None = None
    float32: bool = False
    offset: float = 0.0
    last_frame: bool = False
    flatten: bool = False

    def shard_bounds(self, rank: int, size: int) -> tuple[slice, ...]:
        """Return what one of `size` ranks reads of the tensor, as one slice a dimension."""
        bounds = [slice(0, length) for length in self.shape]
        if self.split is not None:
            length = self.shape[self.split] // size
            bounds[self.split] = slice(rank * length, (rank + 1) * length)
        if self.last_frame:
            bounds[2] = slice(self.shape[2] - 1, self.shape[2])
        return tuple(bounds)

    def shard_shape(self, size: int) -> tuple[int, ...]:
        """Return the shape that a rank's share has as (the rows of) a parameter, such as (rows, columns)."""
        shape = [bound.stop - bound.start for bound in self.shard_bounds(0, size)]
        if self.last_frame:
            del shape[2]
        return (shape[0],) if self.flatten else tuple(shape)


def sources_by_parameter(sources: Iterable[Source]) -> dict[str, list[Source]]:
    """Group sources by the parameter that they fill, in the order in which they are stacked."""
    by_parameter: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        by_parameter[source.parameter].append(source)
    return by_parameter


def sources_by_component(config: ModelConfig, *, image_input: bool = True) -> dict[str, list[Source]]:
    """List the tensors of each component. image_input: with the VAE's encoder, a component of its own, whose tensors
    are in the VAE's file."""
    sources = {
        "transformer": list(transformer_sources(config.transformer)),
        "text_encoder": list(text_encoder_sources(config)),
        "vae": list(vae_sources(config.vae)),
    }
    return sources | ({VAE_ENCODER: list(vae_encoder_sources(config.vae))} if image_input else {})


def component_with_files(component: str) -> str:
    """Return the component in whose files a component's tensors are."""
    return "vae" if component == VAE_ENCODER else component


def is_vae_encoder(name: str) -> bool:
    """Whether a tensor or parameter of the VAE, by its name, is the encoder's."""
    return name.startswith(("encoder.", "quant_conv."))


def transformer_sources(config: TransformerConfig) -> Iterator[Source]:
    """List the tensors of the DiT with its text fusion."""
    width, text_width = config.hidden_size, config.text_hidden_size
    yield from _linear("img_in", config.in_channels, width)
    yield from _linear("time_embed.linear_1", config.timestep_embed_dim, width)
    yield from _linear("time_embed.linear_2", width, width)
    yield from _linear("time_mod_proj", width, 6 * width)
    yield from _linear("txt_in.linear_1", text_width, width)
    yield from _linear("txt_in.linear_2", width, width)
    yield _centred_norm("txt_in.norm", text_width)
    yield Source("text_fusion.projector.weight", (1, config.num_text_layers), "text_fusion.projector.weight")
    for kind, count in (
        ("layerwise_blocks", config.num_layerwise_text_blocks),
        ("refiner_blocks", config.num_refiner_text_blocks),
    ):
        for block in range(count):
            yield from _block(
                f"text_fusion.{kind}.{block}",
                text_width,
                config.text_num_heads,
                config.text_num_kv_heads,
                config.text_head_dim,
                config.text_intermediate_size,
            )
    for block in range(config.num_layers):
        prefix = f"transformer_blocks.{block}"
        yield _table(f"{prefix}.scale_shift_table", 6, width)
        yield from _block(
            prefix, width, config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size
        )
    yield _table("final_layer.scale_shift_table", 2, width)
    yield _centred_norm("final_layer.norm", width)
    yield from _linear("final_layer.linear", width, config.in_channels)


def _block(
    prefix: str, width: int, heads: int, kv_heads: int, head_dim: int, intermediate_size: int
) -> Iterator[Source]:
    for part, part_heads in (("to_q", heads), ("to_k", kv_heads), ("to_v", kv_heads), ("to_gate", heads)):
        shape = (part_heads * head_dim, width)
        yield Source(f"{prefix}.attn.{part}.weight", shape, f"{prefix}.attn.qkvg.weight", ROWS)
    yield Source(f"{prefix}.attn.to_out.0.weight", (width, heads * head_dim), f"{prefix}.attn.out.weight", COLUMNS)
    yield _centred_norm(f"{prefix}.attn.norm_q", head_dim)
    yield _centred_norm(f"{prefix}.attn.norm_k", head_dim)
    for part in ("gate", "up"):
        yield Source(f"{prefix}.ff.{part}.weight", (intermediate_size, width), f"{prefix}.ff.gate_up.weight", ROWS)
    yield Source(f"{prefix}.ff.down.weight", (width, intermediate_size), f"{prefix}.ff.down.weight", COLUMNS)
    yield _centred_norm(f"{prefix}.norm1", width)
    yield _centred_norm(f"{prefix}.norm2", width)


def text_encoder_sources(config: ModelConfig) -> Iterator[Source]:
    """List the tensors of the language model up to the last tap."""
    text = config.text_encoder
    width = text.hidden_size
    yield Source("embed_tokens.weight", (text.vocab_size, width), "embed_tokens.weight")
    for layer in range(config.text_layers):
        name = f"layers.{layer}"
        yield Source(f"{name}.input_layernorm.weight", (width,), f"{name}.norm1.weight", float32=True)
        yield Source(f"{name}.post_attention_layernorm.weight", (width,), f"{name}.norm2.weight", float32=True)
        for part, heads in (("q", text.num_heads), ("k", text.num_kv_heads), ("v", text.num_kv_heads)):
            shape = (heads * text.head_dim, width)
            yield Source(f"{name}.self_attn.{part}_proj.weight", shape, f"{name}.attn.qkv.weight", ROWS)
        for part in ("q", "k"):
            norm = f"{name}.self_attn.{part}_norm.weight"
            yield Source(norm, (text.head_dim,), f"{name}.attn.norm_{part}.weight", float32=True)
        shape = (width, text.num_heads * text.head_dim)
        yield Source(f"{name}.self_attn.o_proj.weight", shape, f"{name}.attn.out.weight", COLUMNS)
        for part in ("gate", "up"):
            shape = (text.intermediate_size, width)
            yield Source(f"{name}.mlp.{part}_proj.weight", shape, f"{name}.mlp.gate_up.weight", ROWS)
        shape = (width, text.intermediate_size)
        yield Source(f"{name}.mlp.down_proj.weight", shape, f"{name}.mlp.down.weight", COLUMNS)
    if max(config.text_encoder_taps) == text.num_layers:  # hidden_states' last entry is after the final norm
        yield Source("norm.weight", (width,), "norm.weight", float32=True)


def vae_sources(config: VAEConfig) -> Iterator[Source]:
    """List the tensors of the decoder, without any `time_conv`. Its 3-D convolutions are read as 2-D ones."""
    widths = [config.base_dim * multiplier for multiplier in reversed(config.dim_mult)]
    yield from _linear("post_quant_conv", config.z_dim, config.z_dim, 1, 1, 1)
    yield from _linear("decoder.conv_in", config.z_dim, widths[0], 3, 3, 3)
    yield from _vae_middle("decoder.mid_block", widths[0])
    incoming = widths[0]
    for level, outgoing in enumerate(widths):
        for block in range(config.num_res_blocks + 1):
            yield from _resnet(f"decoder.up_blocks.{level}.resnets.{block}", incoming, outgoing)
            incoming = outgoing
        if level < len(widths) - 1:
            incoming = outgoing // 2
            yield from _linear(f"decoder.up_blocks.{level}.upsamplers.0.resample.1", outgoing, incoming, 3, 3)
    yield _image_norm("decoder.norm_out", (widths[-1], 1, 1, 1))
    yield from _linear("decoder.conv_out", widths[-1], 3, 3, 3, 3)


def vae_encoder_sources(config: VAEConfig) -> Iterator[Source]:
    """List the tensors of the encoder, which the VAE's file has beside the decoder's, read as these are."""
    widths = [config.base_dim * multiplier for multiplier in config.dim_mult]
    yield from _linear("encoder.conv_in", 3, config.base_dim, 3, 3, 3)
    number, incoming = 0, config.base_dim  # levels are not told apart in the names
    for level, outgoing in enumerate(widths):
        for _ in range(config.num_res_blocks):
            yield from _resnet(f"encoder.down_blocks.{number}", incoming, outgoing)
            number, incoming = number + 1, outgoing
        if level < len(widths) - 1:
            yield from _linear(f"encoder.down_blocks.{number}.resample.1", outgoing, outgoing, 3, 3)
            number += 1
    yield from _vae_middle("encoder.mid_block", widths[-1])
    yield _image_norm("encoder.norm_out", (widths[-1], 1, 1, 1))
    yield from _linear("encoder.conv_out", widths[-1], 2 * config.z_dim, 3, 3, 3)
    yield from _linear("quant_conv", 2 * config.z_dim, 2 * config.z_dim, 1, 1, 1)


def _vae_middle(prefix: str, width: int) -> Iterator[Source]:
    yield from _resnet(f"{prefix}.resnets.0", width, width)
    yield _image_norm(f"{prefix}.attentions.0.norm", (width, 1, 1))
    yield from _linear(f"{prefix}.attentions.0.to_qkv", width, 3 * width, 1, 1)
    yield from _linear(f"{prefix}.attentions.0.proj", width, width, 1, 1)
    yield from _resnet(f"{prefix}.resnets.1", width, width)


def _resnet(prefix: str, incoming: int, outgoing: int) -> Iterator[Source]:
    yield _image_norm(f"{prefix}.norm1", (incoming, 1, 1, 1))
    yield from _linear(f"{prefix}.conv1", incoming, outgoing, 3, 3, 3)
    yield _image_norm(f"{prefix}.norm2", (outgoing, 1, 1, 1))
    yield from _linear(f"{prefix}.conv2", outgoing, outgoing, 3, 3, 3)
    if incoming != outgoing:
        yield from _linear(f"{prefix}.conv_shortcut", incoming, outgoing, 1, 1, 1)


def _linear(name: str, incoming: int, outgoing: int, *kernel: int) -> Iterator[Source]:
    """Weight and bias of a linear layer or, with a kernel, of a convolution."""
    parameter = name.replace(".resample.1", "")
    shape = (outgoing, incoming, *kernel)
    yield Source(f"{name}.weight", shape, f"{parameter}.weight", last_frame=len(kernel) == 3)
    yield Source(f"{name}.bias", (outgoing,), f"{parameter}.bias")


def _image_norm(name: str, shape: tuple[int, ...]) -> Source:
    return Source(f"{name}.gamma", shape, f"{name}.weight", flatten=True)


def _centred_norm(name: str, width: int) -> Source:
    return Source(f"{name}.weight", (width,), f"{name}.weight", float32=True, offset=1.0)


def _table(name: str, rows: int, width: int) -> Source:
    return Source(name, (rows, width), name, float32=True)
