"""Files of tensors: safetensors, GGUF and shards, each read a slice at a time. None of them knows Krea 2."""
