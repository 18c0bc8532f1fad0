"""What there is of host memory is the least of what the machine has and of what each cgroup allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.device.host_memory import HostMemory, who_kills

GIB = 2**30
MEMINFO = f"MemTotal: {64 << 20} kB\nMemAvailable: {50 << 20} kB\nSwapFree: {8 << 20} kB\nHugePages_Free: 0\n"
V2, V1 = "0::/pod/box", "5:cpu,cpuacct:/x\n4:memory:/pod/box"
CURRENT = {
    "memory.current": f"{6 * GIB}",
    "memory.stat": f"anon {2 * GIB}\nactive_file {3 * GIB}\ninactive_file {GIB}\n",
}
USAGE = {
    "memory.usage_in_bytes": f"{6 * GIB}",
    "memory.stat": f"total_rss {2 * GIB}\ntotal_active_file {3 * GIB}\ntotal_inactive_file {GIB}\n",
}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param("", {}, (64, 50, 8), id="no cgroups"),
        pytest.param(V2, {"pod/box": {**CURRENT, "memory.max": "max"}}, (64, 50, 8), id="no limit"),
        pytest.param(V2, {"pod/box": {**CURRENT, "memory.max": f"{24 * GIB}"}}, (24, 22, 8), id="files are no memory"),
        pytest.param(
            V2,
            {"pod/box": {**CURRENT, "memory.max": f"{24 * GIB}"}, "pod": {**CURRENT, "memory.max": f"{16 * GIB}"}},
            (16, 14, 8),
            id="nested",
        ),
        pytest.param(
            V2,
            {"pod/box": {**CURRENT, "memory.max": f"{24 * GIB}", "memory.swap.max": "0", "memory.swap.current": "0"}},
            (24, 22, 0),
            id="no swap for the group",
        ),
        pytest.param("0::/", {"": {**CURRENT, "memory.max": f"{24 * GIB}"}}, (24, 22, 8), id="a container's root"),
        pytest.param(V2, {"": {**CURRENT, "memory.max": f"{1 * GIB}"}}, (1, 0, 8), id="under another name, and full"),
        pytest.param("0::/../../x", {"": {**CURRENT, "memory.max": f"{24 * GIB}"}}, (24, 22, 8), id="outside"),
        pytest.param(
            V1, {"memory/pod/box": {**USAGE, "memory.limit_in_bytes": f"{24 * GIB}"}}, (24, 22, 8), id="version 1"
        ),
        pytest.param(
            V1,
            {
                "memory/pod/box": {
                    **USAGE,
                    "memory.limit_in_bytes": f"{24 * GIB}",
                    "memory.memsw.limit_in_bytes": f"{26 * GIB}",
                },
                "memory": {**USAGE, "memory.limit_in_bytes": "9223372036854771712"},
            },
            (24, 22, 2),
            id="version 1 with swap",
        ),
        pytest.param(
            V1,
            {
                "memory": dict.fromkeys(("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), "9223372036854771712")
                | USAGE
            },
            (64, 50, 8),
            id="version 1 without limits",
        ),
        pytest.param(V2, {"pod/box": {"memory.max": "much", "memory.current": "?"}}, (64, 50, 8), id="unreadable"),
    ],
)
def test_the_least_of_all_limits_holds(
    tmp_path: Path, groups: str, files: dict[str, dict[str, str]], expected: tuple[int, int, int]
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    (tmp_path / "proc/self/cgroup").write_text(f"{groups}\n" if groups else "")
    for folder, contents in files.items():
        group = tmp_path / "sys/fs/cgroup" / folder
        group.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (group / name).write_text(content)
    assert HostMemory.read(tmp_path) == HostMemory(*(size * GIB for size in expected))


def test_where_nothing_says_what_there_is_it_is_not_known(tmp_path: Path) -> None:
    assert HostMemory.read(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1 kB\n")
    assert HostMemory.read(tmp_path) is None


def test_the_kernel_is_suspected_of_killing_what_had_much_of_the_memory() -> None:
    kernel = "by the kernel because memory ran out"
    large, small = who_kills(30 * 10**9, HostMemory(64 * 10**9, 0)), who_kills(10**9, HostMemory(64 * 10**9, 0))
    assert large == f"most likely {kernel} (it had up to 30.00 GB, and there are 64.00 GB)"
    assert small == f"by somebody, or {kernel} (it had up to 1.00 GB, and there are 64.00 GB)"
    assert who_kills(10**9, None) == f"most likely {kernel} (it had up to 1.00 GB)"
