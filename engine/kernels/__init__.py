"""One file an operation of the model that is not a matrix product. Each computes in float32 and rounds once.

Packed tensors are (tokens, …) with segments one after the other; `bounds` are the segments' offsets, one more than
there are segments: segment i is rows bounds[i] to bounds[i + 1].
"""
