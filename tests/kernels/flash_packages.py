"""Stand-ins for FlashAttention's packages: their signatures, what they refuse, and the formula in float32.

Those of flash-attn are of its versions 2.7.3 to 2.8.3.post2 (flash_attn/flash_attn_interface.py, and the checks of
`mha_varlen_fwd` in csrc/flash_attn/flash_api.cpp), FlashAttention 3's of hopper/flash_attn_interface.py there, and
FlashAttention 4's of flash-attn-4 4.0.0b36.
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
        sm_margin=0""",
    "fa4": """q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
        min_seqlen_k=None, seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None,
        softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1,
        pack_gqa=None, deterministic=False, score_mod=None, score_mod_bwd=None, mask_mod=None,
        block_sparse_tensors=None, aux_tensors=None, aux_scalars=None, return_lse=False, scheduler_metadata=None,
        seqlen_k_per_split=None, disable_scheduler_metadata=False, gather_bwd_recompute_p=False,
        gather_bwd_token_chunk=None""",
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
    attended = "attend(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)"
    write(
        folder / _FILES[name],
        f"""from tests.kernels.flash_packages import attend

def flash_attn_varlen_func(
        {SIGNATURES[name]}):
    return {attended if name != "fa4" else f"({attended}, None)"}
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


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
) -> torch.Tensor:
    """What the kernel makes of a packed batch. Rows that it has no program for are NaN."""
    tokens, heads, head_dim = query.shape
    kv_heads = key.shape[1]
    assert query.dtype in (torch.bfloat16, torch.float16)
    assert key.dtype == value.dtype == query.dtype
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert {tensor.device for tensor in (key, value, cu_seqlens_q, cu_seqlens_k)} == {query.device}
    for tensor in (query, key, value):
        assert tensor.stride(-1) == 1
        # read 16 bytes at a time
        assert all(number * tensor.itemsize % 16 == 0 for number in (*tensor.stride()[:2], tensor.storage_offset()))
    assert cu_seqlens_q.is_contiguous()
    assert cu_seqlens_k.is_contiguous()
    assert type(max_seqlen_q) is int
    assert type(max_seqlen_k) is int
    assert head_dim <= 256
    assert head_dim % 8 == 0
    assert heads % kv_heads == 0
    assert key.shape == value.shape == (tokens, kv_heads, head_dim)
    segments = len(cu_seqlens_q) - 1
    assert segments > 0
    assert cu_seqlens_k.shape == (segments + 1,)
    if max_seqlen_q == 1 and heads > kv_heads:  # flash-attn takes that for a step of decoding
        query.reshape(segments, kv_heads, heads // kv_heads, head_dim)

    output = torch.full((tokens, heads, head_dim), torch.nan, dtype=query.dtype, device=query.device)
    bounds_q, bounds_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for segment in range(segments):
        rows = slice(bounds_q[segment], min(bounds_q[segment + 1], bounds_q[segment] + max_seqlen_q))
        columns = slice(bounds_k[segment], bounds_k[segment + 1])
        grouped = query[rows].float().unflatten(1, (kv_heads, -1))
        scores = torch.einsum("qhgd,khd->hgqk", grouped, key[columns].float()) * head_dim**-0.5
        attended = torch.einsum("hgqk,khd->qhgd", scores.softmax(-1), value[columns].float())
        output[rows] = attended.flatten(1, 2).to(output.dtype)
    return output
