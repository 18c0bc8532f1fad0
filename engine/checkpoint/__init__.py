"""Where weights come from: the tensors of Krea 2, how they are split, and what a rank reads of them."""

from engine.checkpoint.files import CheckpointFiles
from engine.checkpoint.summary import ComponentSummary, summarize

__all__ = ["CheckpointFiles", "ComponentSummary", "summarize"]
