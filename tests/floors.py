"""The floors that the packages stand on: what the files of each folder may import. `test_imports` holds them."""

from __future__ import annotations

# The floors of the engine, the lowest first: what the files of a folder may import of the engine besides each other. A
# folder without a line here may import nothing of it.
_SIZES = {"engine.errors", "engine.config"}
ENGINE_FLOORS: dict[str, set[str]] = {
    "engine": set(),  # which version it is
    "engine.errors": set(),
    "engine.step": set(),
    "engine.config": {"engine.errors"},
    "engine.scheduling": {"engine.step"},
    "engine.kernels": set(),
    "engine.kernels.attention": {"engine.errors", "engine.kernels"},
    "engine.device": {*_SIZES, "engine.kernels"},
    "engine.parallel": {"engine", *_SIZES, "engine.kernels", "engine.kernels.attention"},
    "engine.checkpoint.files": _SIZES,
    "engine.checkpoint.quantized": {*_SIZES, "engine.checkpoint.files"},
    "engine.checkpoint.layouts": {
        *_SIZES,
        "engine.kernels",
        "engine.checkpoint.files",
        "engine.checkpoint.quantized",
    },
    "engine.checkpoint": {
        *_SIZES,
        "engine.kernels",
        "engine.parallel",
        "engine.checkpoint.files",
        "engine.checkpoint.layouts",
    },
    "engine.checkpoint.convert": {
        *_SIZES,
        "engine.kernels",
        "engine.checkpoint",
        "engine.checkpoint.files",
        "engine.checkpoint.layouts",
        "engine.checkpoint.quantized",
    },
    "engine.model": {*_SIZES, "engine.device", "engine.kernels", "engine.kernels.attention", "engine.parallel"},
    "engine.lora": {
        *_SIZES,
        "engine.step",
        "engine.kernels",
        "engine.parallel",
        "engine.checkpoint",
        "engine.checkpoint.files",
        "engine.checkpoint.layouts",
    },
    "engine.planning": {*_SIZES, "engine.checkpoint", "engine.model"},
    "engine.offload": {
        *_SIZES,
        "engine.device",
        "engine.checkpoint",
        "engine.model",
        "engine.planning",
    },
    "engine.rank": {
        *_SIZES,
        "engine.step",
        "engine.device",
        "engine.kernels",
        "engine.kernels.attention",
        "engine.parallel",
        "engine.checkpoint",
        "engine.lora",
        "engine.model",
        "engine.planning",
        "engine.offload",
    },
}
# The same of the launcher. Its package stands above all: what it exports is imported when somebody asks for it, and its
# imports of these are for types alone. Importing it, as importing anything in it does, imports none of them.
_CHILDREN = {
    "launcher.awake",
    "launcher.lines",
    "launcher.logs",
    "launcher.messages",
    "launcher.processes",
    "launcher.run_folder",
    "launcher.threads",
}
LAUNCHER_FLOORS: dict[str, set[str]] = {
    "launcher.explanation": set(),
    "launcher.lines": set(),
    "launcher.logs": {"launcher.lines"},
    "launcher.awake": set(),
    "launcher.service_manager": set(),
    "launcher.threads": set(),
    "launcher.parameters": set(),
    "launcher.messages": {"launcher.explanation", "launcher.logs", "launcher.parameters"},
    "launcher.processes": {"launcher.awake", "launcher.lines", "launcher.logs", "launcher.messages"},
    "launcher.run_folder": set(),
    "launcher.requests": {"launcher.explanation", "launcher.messages"},
    "launcher.requests.explained": {"launcher.explanation", "launcher.messages", "launcher.requests"},
    "launcher.client": {
        "launcher.explanation",
        "launcher.awake",
        "launcher.parameters",
        "launcher.messages",
        "launcher.requests",
    },
    "launcher.http.workers": _CHILDREN,
    "launcher.http.answers": {*_CHILDREN, "launcher.client", "launcher.requests"},
    "launcher.http.apis": {
        *_CHILDREN,
        "launcher.client",
        "launcher.requests",
        "launcher.http.workers",
        "launcher.http.answers",
    },
    "launcher.http.apis.automatic1111": {
        *_CHILDREN,
        "launcher.client",
        "launcher.requests",
        "launcher.http.answers",
    },
    "launcher.http.apis.chat": {*_CHILDREN, "launcher.client", "launcher.http.answers", "launcher.http.apis"},
    "launcher.http.docs": {*_CHILDREN, "launcher.requests", "launcher.http.answers"},
    "launcher.http": {
        *_CHILDREN,
        "launcher.client",
        "launcher.requests",
        "launcher.http.workers",
        "launcher.http.answers",
        "launcher.http.apis",
        "launcher.http.apis.automatic1111",
        "launcher.http.apis.chat",
        "launcher.http.docs",
    },
    "launcher.ranks": _CHILDREN,
    "launcher.frontend.admission": {"launcher.logs", "launcher.messages", "launcher.requests", "launcher.threads"},
    "launcher.frontend": {
        *_CHILDREN,
        "launcher.requests",
        "launcher.requests.explained",
        "launcher.http",
        "launcher.ranks",
        "launcher.service_manager",
        "launcher.frontend.admission",
    },
    "launcher.auto_mode": _CHILDREN,
    "launcher.setup": {
        *_CHILDREN,
        "launcher.client",
        "launcher.requests",
        "launcher.frontend",
        "launcher.auto_mode",
    },
    "launcher.cli.options": {*_CHILDREN, "launcher.ranks", "launcher.auto_mode", "launcher.setup"},
    "launcher.cli": {
        *_CHILDREN,
        "launcher.cli.options",
        "launcher.client",
        "launcher.requests",
        "launcher.http",
        "launcher.ranks",
        "launcher.frontend.admission",
        "launcher.frontend",
        "launcher.auto_mode",
        "launcher.setup",
    },
    "launcher.__main__": {
        "launcher.messages",
        "launcher.http",
        "launcher.ranks",
        "launcher.frontend",
        "launcher.auto_mode",
        "launcher.cli",
    },
    "launcher": {"launcher.messages", "launcher.client", "launcher.setup"},
}
# What `krea2.py` has for users, who import nothing else; nothing of ours imports it.
FOR_USERS = {"engine", "engine.errors", "launcher", "launcher.__main__"}
# And of the benchmarks: a command may import what all share, and two may import what they take of another.
_SHARED = {"bench.measure", "bench.survive", "bench.engines"}
BENCH_FLOORS: dict[str, set[str]] = {
    "bench.measure": set(),
    "bench.survive": {"bench.measure"},
    "bench.engines": {"bench.measure", "bench.survive"},
    **dict.fromkeys(("bench.load", "bench.machine", "bench.shared_gpu", "bench.vs_diffusers"), _SHARED),
    **dict.fromkeys(("bench.adherence", "bench.image", "bench.kernel_tests", "bench.kernels", "bench.report"), _SHARED),
    **dict.fromkeys(("bench.scaling", "bench.serve", "bench.step", "bench.throughput"), _SHARED),
    "bench.fidelity": {*_SHARED, "bench.kernels"},
    "bench.summary": {*_SHARED, "bench.report"},
    "bench.verify.subject": _SHARED,
    "bench.verify.oracle": {*_SHARED, "bench.verify.subject"},
    "bench.verify": {*_SHARED, "bench.verify.subject", "bench.verify.oracle"},
}
# Who handles `--parallel auto`. Nobody else has to know of it.
KNOW_AUTO_MODE = {"launcher.setup", "launcher.cli", "launcher.cli.options", "launcher.__main__"}
