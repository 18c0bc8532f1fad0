"""Who listens where: ours on the loopback alone, and Ray where the command says so."""

from __future__ import annotations

import httpx
import pytest

from tests.launcher.processes import read_log
from tests.launcher.ray.left_behind import listening
from tests.launcher.ray.servers import Served

pytestmark = pytest.mark.cluster


def test_what_listens_on_every_interface_is_rays_alone_and_what_the_command_has_said(clustered: Served) -> None:
    found = clustered.listened
    http = httpx.URL(clustered.url).port
    assert [each for each in found if each.port == http]
    assert not [each for each in found if each.is_open and ("launcher" in each.command or each.port == http)]
    (said,) = (entry["open_ports"] for entry in read_log(clustered.log) if entry["event"] == "serving")
    open_ports = {each.port: each.command[0] for each in found if each.is_open}
    assert {*open_ports} == {*said}, open_ports
    assert said, "Ray has learnt to listen on the loopback alone: then the command need not say anything"


def test_what_starts_later_listens_as_what_it_replaces(clustered: Served) -> None:
    assert clustered.before is not None
    found = listening(clustered.before.since())
    commands = {each.command[0] for each in found if each.is_open and each.command}
    of_ray = {command for command in commands if command.startswith("ray::")}  # whose titles say what they do just now
    assert commands - of_ray <= {each.command[0] for each in clustered.listened}
    assert not [each for each in found if each.is_open and "launcher" in each.command]
