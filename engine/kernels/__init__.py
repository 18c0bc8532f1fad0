"""One file an operation of the model: the function that the model calls, which is its torch reference, and the Triton
kernel that computes the same on a GPU (`…_triton` launches it). `jit.Operation` chooses between the two.

Each computes in float32 and rounds once. Packed tensors are (tokens, …) with segments one after the other, which a
`Packing` describes.
"""
