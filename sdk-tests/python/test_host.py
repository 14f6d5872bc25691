"""What the server says of itself, its host and its images."""

import pytest
from hypeman import AsyncHypeman, Hypeman, NotFoundError
from hypeman.types import Capabilities, HealthCheckResponse, Image, Resources

from conftest import IMAGE
from ours import checked


def test_health(client):
    health = checked(client.health.check())
    assert isinstance(health, HealthCheckResponse)
    assert health.status == "ok"


def test_capabilities(client):
    capabilities = checked(client.capabilities.get())
    assert isinstance(capabilities, Capabilities)
    assert {"instances", "images", "exec", "logs"} <= set(capabilities.features)
    assert (capabilities.host.os, capabilities.host.arch) == ("linux", "amd64")
    assert capabilities.images.default_platform in capabilities.images.platforms
    runtimes = {runtime.name: runtime for runtime in capabilities.runtimes}
    assert list(runtimes) == sorted(runtimes)
    for name in ("qemu", "qemu-microvm"):
        assert runtimes[name].available
        assert {"snapshots", "standby", "fork"} <= set(runtimes[name].features)
    default = capabilities.default_runtime
    assert default.available and default.name in runtimes


def test_resources(client, boot):
    instance = boot("resourceful", vcpus=1)
    resources = checked(client.resources.get())
    assert isinstance(resources, Resources)
    for resource in (resources.cpu, resources.memory, resources.disk):
        assert resource.capacity > 0
        assert 0 <= resource.available <= resource.effective_limit
        assert resource.allocated + resource.available == resource.effective_limit
    for resource in (resources.cpu, resources.memory):
        assert resource.effective_limit == resource.capacity * resource.oversub_ratio
    [share] = [share for share in resources.allocations if share.instance_id == instance.id]
    assert (share.instance_name, share.cpu, share.memory_bytes) == ("resourceful", 1, 128 << 20)


def test_an_image_that_was_imported(client, hearth):
    image = checked(client.images.create(name=IMAGE))
    assert isinstance(image, Image)
    assert (image.status, image.platform) == ("ready", "linux/amd64")
    assert (image.entrypoint, image.cmd, image.working_dir) == (["/bin/sh"], ["/bin/counter"], "/srv")
    assert image.env["COLOUR"] == "red"
    assert image.digest.startswith("sha256:") and image.size_bytes > 0
    assert image.name == "docker.io/sdk/web:1"
    for name in (IMAGE, image.name):
        assert client.images.get(name) == image
    assert image.name in [known.name for known in client.images.list()]

    hearth("image", "import", str(hearth.directory / "image"), "--name", "sdk/other:1")
    client.images.delete("sdk/other:1")
    with pytest.raises(NotFoundError):
        client.images.get("sdk/other:1")
    client.images.get(IMAGE)


def test_tags_of_images(client):
    client.images.create(name=IMAGE, tags={"team": "red"})
    assert [image.tags for image in client.images.list(tags={"team": "red"})] == [{"team": "red"}]
    assert client.images.list(tags={"team": "blue"}) == []


def test_a_client_with_nothing_but_its_defaults(hearth, monkeypatch):
    monkeypatch.setenv("HYPEMAN_BASE_URL", hearth.url)
    monkeypatch.setenv("HYPEMAN_API_KEY", "whatever")
    assert Hypeman().health.check().status == "ok"


def test_the_asynchronous_client(hearth):
    import asyncio

    async def ask():
        async with AsyncHypeman(api_key="x", base_url=hearth.url) as client:
            return await client.health.check()

    assert asyncio.run(ask()).status == "ok"
