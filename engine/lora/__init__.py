"""LoRA and its relatives: which layers an adapter's file changes, and the side paths and vectors that apply it."""
