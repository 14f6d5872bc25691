"""What is refused, and as which of the SDK's errors."""

from datetime import datetime, timedelta, timezone

import pytest
from hypeman import BadRequestError, ConflictError, NotFoundError, UnprocessableEntityError

from conftest import IMAGE

COMPRESSION = {"enabled": True, "algorithm": "zstd"}


def said(error):
    """The error's body, which has the parts that every body has."""
    body = error.value.body
    assert body["code"] and body["message"] and body["request_id"]
    assert body["request_id"] == error.value.response.headers["x-request-id"]
    # Nothing is tried again that cannot turn out differently.
    assert error.value.response.headers["x-should-retry"] == "false"
    return body


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("auto_standby", {"auto_standby": {"enabled": True, "idle_timeout": "5m"}}),
        (
            "credentials",
            {"credentials": {"KEY": {"source": {"env": "K"}, "inject": [{"as": {"header": "A", "format": "${value}"}}]}}},
        ),
        ("devices", {"devices": ["l4-gpu"]}),
        ("disk_io_bps", {"disk_io_bps": "100MB/s"}),
        ("expires_at", {"expires_at": datetime.now(timezone.utc) + timedelta(hours=1)}),
        ("gpu", {"gpu": {"profile": "L40S-1Q"}}),
        ("health_check", {"health_check": {"type": "tcp", "tcp": {"port": 80}}}),
        ("hotplug_size", {"hotplug_size": "3GB"}),
        ("network.egress", {"network": {"enabled": True, "egress": {"enabled": True}}}),
        ("platform", {"platform": "linux/arm64"}),
        ("snapshot_policy", {"snapshot_policy": {"compression": COMPRESSION}}),
        ("ttl", {"ttl": "1h"}),
        ("volumes", {"volumes": [{"volume_id": "v", "mount_path": "/mnt"}]}),
        ("hypervisor", {"hypervisor": "cloud-hypervisor"}),
    ],
)
def test_fields_that_are_not_acted_on(client, field, fields):
    with pytest.raises(UnprocessableEntityError) as error:
        client.instances.create(name="web", image=IMAGE, **fields)
    body = said(error)
    assert body["code"] == "unsupported"
    assert field in body["message"] and body["hint"]
    assert client.instances.list() == []


def test_fields_that_ask_for_nothing(client, boot):
    made = boot(
        "plain",
        auto_standby={"enabled": False},
        credentials={},
        devices=[],
        health_check={"type": "none"},
        hotplug_size="0",
        network={"enabled": True, "egress": {"enabled": False}},
        platform="linux/amd64",
        restart_policy={"policy": "never"},
        skip_guest_agent=False,
        skip_kernel_headers=True,
        ttl="0s",
        volumes=[],
    )
    assert made.name == "plain"


def test_fields_of_other_requests_that_are_not_acted_on(client, boot):
    boot("web")
    for field, request in [
        ("compression", lambda: client.instances.standby("web", compression=COMPRESSION)),
        ("compression_delay", lambda: client.instances.standby("web", compression_delay="30s")),
        ("compression", lambda: client.instances.snapshots.create("web", kind="Standby", compression=COMPRESSION)),
        ("ttl", lambda: client.instances.update("web", ttl="1h")),
        ("platform", lambda: client.images.create(name=IMAGE, platform="linux/arm64")),
        ("credentials", lambda: client.images.create(name=IMAGE, credentials={"username": "u", "password": "p"})),
    ]:
        with pytest.raises(UnprocessableEntityError) as error:
            request()
        assert field in said(error)["message"]
    assert client.instances.get("web").state == "Running"
    assert client.snapshots.list() == []
    client.instances.stop("web")
    with pytest.raises(UnprocessableEntityError) as error:
        client.instances.start("web", cmd=["true"])
    assert "cmd" in said(error)["message"]


def test_what_is_not_there(client):
    for name, request in [
        ("nobody", lambda: client.instances.get("nobody")),
        ("nobody", lambda: client.instances.standby("nobody")),
        ("nobody", lambda: client.instances.delete("nobody")),
        ("nobody", lambda: client.instances.wait("nobody", state="Running")),
        ("nobody", lambda: client.instances.logs("nobody")),
        ("nothing", lambda: client.snapshots.get("nothing")),
        ("nothing", lambda: client.snapshots.fork("nothing", name="fork")),
        ("no/image:1", lambda: client.images.get("no/image:1")),
        ("no/image:1", lambda: client.images.create(name="no/image:1")),
        ("no/image:1", lambda: client.instances.create(name="web", image="no/image:1")),
    ]:
        with pytest.raises(NotFoundError) as error:
            request()
        body = said(error)
        assert body["code"] == "not_found" and name in body["message"]


def test_what_conflicts(client, boot):
    boot("web")
    for code, request in [
        ("already_exists", lambda: boot("web")),
        ("already_exists", lambda: client.instances.fork("web", name="web", from_running=True)),
        ("wrong_state", lambda: client.instances.fork("web", name="fork")),
        ("wrong_state", lambda: client.instances.snapshots.create("web", kind="Stopped")),
    ]:
        with pytest.raises(ConflictError) as error:
            request()
        body = said(error)
        assert body["code"] == code and "web" in body["message"]
    client.instances.stop("web")
    for request in (client.instances.standby, client.instances.restore):
        with pytest.raises(ConflictError) as error:
            request("web")
        assert said(error)["code"] == "wrong_state"


def test_what_means_nothing(client, boot):
    boot("web")
    for says, request in [
        ("Not A Name", lambda: boot("Not A Name")),
        ("size", lambda: boot("other", size="much")),
        ("vcpus", lambda: boot("other", vcpus=1000)),
        ("network.bandwidth_upload", lambda: boot("other", network={"bandwidth_upload": "fast"})),
        ("restart_policy.backoff", lambda: boot("other", restart_policy={"policy": "always", "backoff": "soon"})),
        ("restart_policy", lambda: client.instances.update("web", restart_policy={"policy": "sometimes"})),
        ("nonsense", lambda: boot("other", extra_body={"nonsense": 1})),
        ("state", lambda: client.instances.list(state="Dreaming")),
        ("state", lambda: client.instances.wait("web", state="Dreaming")),
        ("timeout", lambda: client.instances.wait("web", state="Stopped", api_timeout="soon")),
        ("kind", lambda: client.instances.snapshots.create("web", kind="Warm")),
    ]:
        with pytest.raises(BadRequestError) as error:
            request()
        body = said(error)
        assert body["code"] == "invalid" and says in f"{body['message']} {body.get('causes')}"
    assert [instance.name for instance in client.instances.list()] == ["web"]
