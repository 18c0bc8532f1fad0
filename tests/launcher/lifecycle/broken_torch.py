"""A torch that fails in the ways that a real one can."""

from __future__ import annotations

import os

from tests.launcher.processes import Marked

CPP_ERROR = """terminate called after throwing an instance of 'c10::DistBackendError'
  what():  [Rank 0] watchdog thread terminated with exception: CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.

Exception raised from c10_cuda_check_implementation at CUDAException.cpp:44 (most recent call first):
""" + "".join(f"frame #{i}: <unknown function> + 0x{i} (0x7f{i} in libc10.so)\n" for i in range(40))
FAKE_TORCH = {
    "hangs": "import threading; threading.Event().wait()",
    "raises": "raise RuntimeError('no torch\\nfor you')",
    "exits": "import os, sys; print('my last words', file=sys.stderr, flush=True); os._exit(3)",
    "is killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "aborts": f"import os, sys; sys.stderr.write({CPP_ERROR!r}); sys.stderr.flush(); os.abort()",
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
}


def fake_torch(marked: Marked, behaviour: str) -> None:
    """Let ranks find a torch that behaves so, instead of waiting for the real one."""
    folder = marked.folder / "fake"
    folder.mkdir()
    (folder / "torch.py").write_text(FAKE_TORCH[behaviour])
    marked.environment["PYTHONPATH"] = os.pathsep.join((str(folder), marked.environment["PYTHONPATH"]))
