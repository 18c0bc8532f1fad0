"""The shape of a prompt: Krea 2's chat template and its token counts."""

PREFIX = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
PREFIX_TOKENS = 34  # dropped from the encoder's output
SUFFIX_TOKENS = 5
MAX_PROMPT_TOKENS = 507  # of the prompt itself; the rest is cut
