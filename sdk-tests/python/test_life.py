"""The whole life of an instance."""

from datetime import datetime, timedelta, timezone

import pytest
from hypeman import NotFoundError
from hypeman.types import Instance, InstanceStats, PathInfo, Snapshot, WaitForStateResponse

from ours import checked


def is_new(time):
    """A time with a zone, of the last minutes."""
    assert isinstance(time, datetime) and time.tzinfo is not None
    return abs(datetime.now(timezone.utc) - time) < timedelta(minutes=5)


def test_created_waited_for_and_shown(client, boot):
    made = checked(boot("web", size="256MB", vcpus=1, env={"COLOUR": "blue"}, tags={"team": "red"}))
    assert isinstance(made, Instance)
    waited = checked(client.instances.wait(made.id, state="Running", api_timeout="60s"))
    assert isinstance(waited, WaitForStateResponse)
    assert (waited.state, waited.timed_out) == ("Running", False)

    shown = checked(client.instances.get("web"))
    assert (shown.id, shown.name, shown.state, shown.image) == (made.id, "web", "Running", "docker.io/sdk/web:1")
    assert (shown.size, shown.vcpus, shown.hypervisor) == ("256 MB", 1, "qemu-microvm")
    assert (shown.env, shown.tags, shown.platform) == ({"COLOUR": "blue"}, {"team": "red"}, "linux/amd64")
    assert shown.has_snapshot is False and shown.network.enabled
    assert is_new(shown.created_at) and is_new(shown.started_at) and is_new(shown.current_phase_since)
    assert shown.current_phase == "running" and shown.stopped_at is None
    assert {"initializing", "running"} <= set(shown.phase_durations_ms)
    # The beginning of an id that no other has will do.
    assert client.instances.get(made.id[:8]).id == made.id

    assert [instance.id for instance in client.instances.list()] == [made.id]
    assert [instance.id for instance in client.instances.list(state="Running", tags={"team": "red"})] == [made.id]
    assert client.instances.list(state="Stopped") == []
    assert client.instances.list(tags={"team": "blue"}) == []

    client.instances.delete("web")
    with pytest.raises(NotFoundError):
        client.instances.get(made.id)


def test_looked_into(client, boot, hearth, count):
    boot("web")
    # Once it counts it has said that it is ready.
    count("web", 1)
    stats = checked(client.instances.stats("web"))
    assert isinstance(stats, InstanceStats)
    assert (stats.instance_name, stats.allocated_memory_bytes, stats.allocated_vcpus) == ("web", 128 << 20, 1)
    assert stats.cpu_seconds > 0 and stats.memory_rss_bytes > 1 << 20

    path = checked(client.instances.stat("web", path="/bin/counter"))
    assert isinstance(path, PathInfo)
    assert (path.exists, path.is_file, path.is_dir, path.mode & 0o777) == (True, True, False, 0o755)
    link = checked(client.instances.stat("web", path="/srv/link"))
    assert (link.is_symlink, link.link_target) == (True, "/etc/passwd")
    assert client.instances.stat("web", path="/srv/link", follow_links=True).is_file
    nothing = checked(client.instances.stat("web", path="/no/such/file"))
    assert (nothing.exists, nothing.error) == (False, None)

    with client.instances.logs("web", tail=1000) as stream:
        lines = list(stream)
    assert all(isinstance(line, str) for line in lines)
    assert any("counter ready" in line for line in lines)
    with client.instances.logs("web", tail=1) as stream:
        assert len(list(stream)) == 1
    with client.instances.logs("web", source="hypeman") as stream:
        assert any("create" in line for line in stream)
    with client.instances.logs("web", source="vmm") as stream:
        list(stream)
    # Following, one gets what is written later.
    with client.instances.logs("web", follow=True, tail=0) as stream:
        hearth("exec", "web", "--", "sh", "-c", "echo later > /dev/console")
        assert "later" in next(iter(stream))


def test_stopped_and_started(client, boot, count):
    boot("web")
    count("web", 5)
    stopped = checked(client.instances.stop("web"))
    assert (stopped.state, stopped.has_snapshot) == ("Stopped", False)
    assert is_new(stopped.stopped_at)
    assert client.instances.wait("web", state="Stopped").state == "Stopped"
    started = checked(client.instances.start("web"))
    assert started.state in ("Initializing", "Running")
    client.instances.wait("web", state="Running")
    assert count("web", 1) == 1


def test_a_wait_that_is_in_vain(client, boot):
    boot("web")
    waited = client.instances.wait("web", state="Stopped", api_timeout="200ms")
    assert (waited.state, waited.timed_out) == ("Running", True)


def test_standby_restored_and_forked(client, boot, count):
    source = boot("web")
    assert count("web", 5) == 5
    asleep = checked(client.instances.standby("web"))
    assert (asleep.state, asleep.has_snapshot) == ("Standby", True)

    fork = checked(client.instances.fork("web", name="fork", target_state="Running"))
    assert (fork.name, fork.state) == ("fork", "Running")
    assert fork.id != source.id
    same = checked(client.instances.fork("web", name="same"))
    assert same.state == "Standby"

    awake = checked(client.instances.restore("web"))
    assert (awake.state, awake.has_snapshot) == ("Running", False)
    client.instances.restore("same")
    running = checked(client.instances.fork("web", name="running", from_running=True))
    assert running.state == "Running"
    assert client.instances.get("web").state == "Running"
    assert [count(name, add) for name, add in (("web", 1), ("fork", 2), ("same", 3), ("running", 4))] == [6, 7, 8, 9]
    assert "standby" in client.instances.get("web").phase_durations_ms


def test_snapshots(client, boot, count):
    source = boot("web")
    count("web", 5)
    made = checked(client.instances.snapshots.create("web", kind="Standby", name="five", tags={"team": "red"}))
    assert isinstance(made, Snapshot)
    assert (made.kind, made.name, made.tags) == ("Standby", "five", {"team": "red"})
    assert (made.source_instance_id, made.source_instance_name) == (source.id, "web")
    assert made.source_hypervisor == "qemu-microvm" and made.size_bytes > 0 and is_new(made.created_at)
    assert client.snapshots.get(made.id) == made
    assert client.snapshots.list(source_instance_id=source.id, kind="Standby", name="five", tags={"team": "red"}) == [made]
    assert client.snapshots.list(kind="Stopped") == []

    fork = checked(client.snapshots.fork(made.id, name="fork"))
    assert fork.state == "Running"
    count("web", 10)
    client.instances.standby("web")
    back = checked(client.instances.snapshots.restore(made.id, id="web"))
    assert back.state == "Running"
    assert (count("web", 1), count("fork", 2)) == (6, 7)

    client.instances.stop("fork")
    cold = checked(client.instances.snapshots.create("fork", kind="Stopped", name="cold"))
    assert checked(client.snapshots.fork(cold.id, name="thawed")).state == "Stopped"

    client.snapshots.delete(made.id)
    with pytest.raises(NotFoundError):
        client.snapshots.get(made.id)
    assert count("web", 1) == 7


def test_a_program_that_ends(client, boot):
    boot("short", entrypoint=["/bin/sh", "-c"], cmd=["exit 7"])
    client.instances.wait("short", state="Stopped")
    ended = checked(client.instances.get("short"))
    assert (ended.state, ended.exit_code) == ("Stopped", 7)
    assert ended.exit_message


def test_an_address_and_limits_of_its_own(client, boot):
    limits = {"bandwidth_download": "100Mbps", "bandwidth_upload": "1MB/s"}
    made = checked(boot("net", network=limits))
    assert made.network.enabled and made.network.name == "default"
    assert (made.network.bandwidth_download, made.network.bandwidth_upload) == ("100Mbps", "8Mbps")
    assert made.network.ip.startswith("10.110.1.") and made.network.mac
    fork = checked(client.instances.fork("net", name="twin", from_running=True))
    assert fork.network.ip.startswith("10.110.1.") and fork.network.ip != made.network.ip
    assert (fork.network.mac, fork.network.bandwidth_upload) == (made.network.mac, "8Mbps")
    for name in ("net", "twin"):
        client.instances.delete(name)


def test_the_standard_board(client, boot, count):
    made = boot("board", hypervisor="qemu", overlay_size="1GB", network={"enabled": False})
    assert (made.hypervisor, made.overlay_size) == ("qemu", "1 GB")
    assert made.network.enabled is False
    count("board", 5)
    client.instances.standby("board")
    client.instances.restore("board")
    assert count("board", 1) == 6
    client.instances.delete("board", graceful_shutdown=True)


def test_a_guest_without_an_agent_runs_when_its_cpus_do(client, boot):
    made = boot("agentless", skip_guest_agent=True, network={"enabled": False})
    assert made.state == "Running"
    client.instances.standby("agentless")
    assert client.instances.restore("agentless").state == "Running"
    client.instances.delete("agentless")
