"""One file an operation of the model: the function that the model calls, its torch reference, its Triton kernel.

The public function chooses by device: Triton's kernel (`…_triton`) on a GPU, the reference (`…_torch`) elsewhere. Each
computes in float32 and rounds once. Packed tensors are (tokens, …) with segments one after the other, which a `Packing`
describes.
"""
