"""A device of the tests' own behind `torch.cuda`, so that the runtime's CUDA branches run without a GPU.

`with FakeCuda() as device:` makes `torch.device("cuda", 0)` a device that computes on the CPU, at once, and writes
down what a GPU would have been free to do in another order. `device.check()` raises `AssertionError` with every rule
that was broken:

- unordered: memory is read or written in a stream (or by the host) that has not waited for what another has done to it;
- freed: memory goes back to the stream that allocated it while another may still use it, with no `record_stream`;
- wait: the host waits for the device inside of `Rank.execute`, elsewhere than within `device.waits_allowed()`;
- unpinned: inside of it memory is copied to the device that is not pinned, for which the host waits as well;
- capture: what a CUDA graph cannot hold, or cannot rely on when it is replayed.

Modelled: streams, events and what the host knows, by vector clocks, also across executors' threads; blocking and other
copies, pinned memory; graphs, whose operations run again on the same memory at a replay, and not while they are
recorded; one GPU's memory, as a sum. Not modelled: kernels (their references run, see `references`), time, several
GPUs, what else the allocator does, a stream that is forked inside of a capture, threads that started before, what
threads tell each other but through executors. Memory is one thing a storage: two streams that write to two halves of
one are told to be unordered.
"""

from tests.fake_cuda.install import FakeCuda

__all__ = ["FakeCuda"]
