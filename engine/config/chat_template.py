"""The shape of a prompt: Krea 2's chat template, and how many tokens each part of it has."""

PREFIX = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
PREFIX_TOKENS = 34  # whose hidden states are dropped from the text encoder's output
SUFFIX_TOKENS = 5
MAX_PROMPT_TOKENS = 507  # between the two; a longer prompt is cut
