"""LoRA and its relatives: which layers an adapter's file changes, and the side paths that apply it.

Importing the package imports no torch.
"""

from engine.lora.files import AdapterFile, open_adapter

__all__ = ["AdapterFile", "open_adapter"]
