"""Stand-ins for FlashAttention's packages: their signatures, what they refuse, and the formula in float32.

Those of flash-attn are of its versions 2.7.3 to 2.8.3.post2 (flash_attn/flash_attn_interface.py, and the checks of
`mha_varlen_fwd` in csrc/flash_attn/flash_api.cpp), FlashAttention 3's of hopper/flash_attn_interface.py there, and
FlashAttention 4's of flash-attn-4 4.0.0b36. What 3 does with fp8 is of fa3-fwd 0.0.3 and hopper/flash_api.cpp there.
"""

from __future__ import annotations

from pathlib import Path

import torch

SIGNATURES = {
    "fa2": """q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None""",
    "fa3": """q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False""",
    "fa4": """q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
        min_seqlen_k=None, seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None,
        softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1,
        pack_gqa=None, deterministic=False, score_mod=None, score_mod_bwd=None, mask_mod=None,
        block_sparse_tensors=None, aux_tensors=None, aux_scalars=None, return_lse=False, scheduler_metadata=None,
        seqlen_k_per_split=None, disable_scheduler_metadata=False, gather_bwd_recompute_p=False,
        gather_bwd_token_chunk=None""",
}
# Of the function for equally long segments.
DENSE_SIGNATURES = {
    "fa2": """q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        alibi_slopes=None, deterministic=False, return_attn_probs=False""",
    "fa3": """q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False""",
    "fa4": """q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None),
        learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False""",
}
_FILES = {
    "fa2": "flash_attn/flash_attn_interface.py",
    "fa3": "flash_attn_interface.py",
    "fa4": "flash_attn/cute/interface.py",
}
_DISTRIBUTIONS = {"fa2": ("flash_attn", "2.8.3.post1"), "fa3": ("flash_attn_3", "3.0.0"), "fa4": ("flash_attn_4", "4")}


def install(name: str, folder: Path, version: str | None = None) -> None:
    """Put the package into a folder that is to be on Python's path."""
    distribution, usual = _DISTRIBUTIONS[name]
    version = version or usual
    scales = "q_descale, k_descale, v_descale" if name == "fa3" else "None, None, None"
    attended = f"attend(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, {scales})"
    dense = f"attend_dense(q, k, v, {scales})"
    note = "pack_gqa" if name == "fa3" else "None"
    write(
        folder / _FILES[name],
        f"""from tests.engine.kernels.attention.flash_packages import attend, attend_dense, calls

def flash_attn_varlen_func(
        {SIGNATURES[name]}):
    calls.append(("varlen", {note}))
    return {attended if name != "fa4" else f"({attended}, None)"}

def flash_attn_func(
        {DENSE_SIGNATURES[name]}):
    calls.append(("dense", {note}))
    return {dense if name != "fa4" else f"({dense}, None)"}
""",
    )
    if name == "fa2":
        write(folder / "flash_attn/__init__.py", "from flash_attn.flash_attn_interface import flash_attn_varlen_func\n")
    if name == "fa4":
        write(folder / "flash_attn/cute/__init__.py", "from flash_attn.cute.interface import flash_attn_varlen_func\n")
    write(
        folder / f"{distribution}-{version}.dist-info/METADATA",
        f"Metadata-Version: 2.4\nName: {distribution}\nVersion: {version}\n",
    )


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


# Which function was called, and the value of pack_gqa where there is one.
calls: list[tuple[str, bool | None]] = []


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *scales: torch.Tensor | None,
) -> torch.Tensor:
    """What the kernel makes of a packed batch. Rows that it has no program for are NaN."""
    tokens, heads, head_dim = query.shape
    kv_heads = key.shape[1]
    segments = len(cu_seqlens_q) - 1
    _check_rows(query, key, value)
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert {tensor.device for tensor in (cu_seqlens_q, cu_seqlens_k)} == {query.device}
    assert cu_seqlens_q.is_contiguous()
    assert cu_seqlens_k.is_contiguous()
    assert type(max_seqlen_q) is int
    assert type(max_seqlen_k) is int
    assert key.shape == value.shape == (tokens, kv_heads, head_dim)
    assert segments > 0
    assert cu_seqlens_k.shape == (segments + 1,)
    if max_seqlen_q == 1 and heads > kv_heads:  # flash-attn takes that for a step of decoding
        query.reshape(segments, kv_heads, heads // kv_heads, head_dim)

    output = torch.full((tokens, heads, head_dim), torch.nan, dtype=_output_dtype(query), device=query.device)
    bounds_q, bounds_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    factors = [_factors(scale, query, segments, kv_heads) for scale in scales or (None, None, None)]
    for segment in range(segments):
        rows = slice(bounds_q[segment], min(bounds_q[segment + 1], bounds_q[segment] + max_seqlen_q))
        columns = slice(bounds_k[segment], bounds_k[segment + 1])
        parts = (query[rows], key[columns], value[columns])
        output[rows] = _formula(*parts, *(factor[segment] for factor in factors)).to(output.dtype)
    return output


def attend_dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *scales: torch.Tensor | None
) -> torch.Tensor:
    """What the kernel makes of (batch, tokens, heads, head_dim)."""
    batch, tokens, _, head_dim = query.shape
    kv_heads = key.shape[2]
    _check_rows(query, key, value)
    assert tokens > 0
    assert key.shape == value.shape == (batch, tokens, kv_heads, head_dim)
    factors = [_factors(scale, query, batch, kv_heads) for scale in scales]
    outputs = [_formula(*parts) for parts in zip(query, key, value, *factors, strict=True)]
    return torch.stack(outputs).to(_output_dtype(query))


def _check_rows(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """(…, heads, head_dim) of each."""
    heads, head_dim = query.shape[-2:]
    assert query.dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn)
    assert key.dtype == value.dtype == query.dtype
    assert {key.device, value.device} == {query.device}
    for tensor in (query, key, value):
        assert tensor.stride(-1) == 1
        # read 16 bytes at a time
        assert all(number * tensor.itemsize % 16 == 0 for number in (*tensor.stride()[:-1], tensor.storage_offset()))
    assert head_dim <= 256
    assert head_dim % (16 if query.itemsize == 1 else 8) == 0
    assert heads % key.shape[-2] == 0


def _output_dtype(query: torch.Tensor) -> torch.dtype:
    return torch.bfloat16 if query.itemsize == 1 else query.dtype


def _factors(scale: torch.Tensor | None, query: torch.Tensor, batch: int, kv_heads: int) -> torch.Tensor:
    """(batch, kv_heads) float32, which only fp8 has."""
    assert (scale is not None) == (query.itemsize == 1)
    if scale is None:
        return torch.ones((batch, kv_heads))
    assert (scale.shape, scale.dtype, scale.device) == ((batch, kv_heads), torch.float32, query.device)
    return scale


def _formula(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    of_query: torch.Tensor,
    of_key: torch.Tensor,
    of_value: torch.Tensor,
) -> torch.Tensor:
    """Of one segment, (tokens, heads, head_dim); factors: (kv_heads,). In float32, also what the kernel rounds."""
    kv_heads, head_dim = key.shape[1:]
    grouped = query.float().unflatten(1, (kv_heads, -1)) * of_query[:, None, None]
    keys, values = key.float() * of_key[:, None], value.float() * of_value[:, None]
    scores = torch.einsum("qhgd,khd->hgqk", grouped, keys) * head_dim**-0.5
    return torch.einsum("hgqk,khd->qhgd", scores.softmax(-1), values).flatten(1, 2)
