"""A daemon for the suite, an image for its instances, and the official SDK's client to talk to it.

In: HEARTH_BIN (the binary) and HEARTH_TEST_KERNEL_DIR (an unpacked kernel package). Out: fixtures.
Without them, or without root, QEMU or a static busybox, everything is skipped and says so.
"""

import json
import hashlib
import os
import queue
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
from io import BytesIO
from pathlib import Path

import pytest
from hypeman import Hypeman

IMAGE = "sdk/web:1"
READY = "hearth: ready on "


def missing():
    """What is not here, or None."""
    for name in ("HEARTH_BIN", "HEARTH_TEST_KERNEL_DIR"):
        if not os.environ.get(name):
            return f"{name} is not set: `cargo xtask ci` sets it"
    if os.geteuid() != 0:
        return "real VMs need root"
    if shutil.which("qemu-system-x86_64") is None:
        return "there is no qemu-system-x86_64: install the package qemu-system-x86"
    if not Path("/bin/busybox").exists():
        return "there is no busybox: install the package busybox-static"
    return None


class Hearth:
    """One `hearth serve`, on a free port, with a data directory of its own."""

    def __init__(self, directory):
        self.directory = directory
        self.data = directory / "data"
        self.binary = os.path.abspath(os.environ["HEARTH_BIN"])
        self.log = []
        env = {
            "HEARTH_KERNEL_DIR": os.path.abspath(os.environ["HEARTH_TEST_KERNEL_DIR"]),
            "HEARTH_LOG_FORMAT": "json",
            # Not the range of a daemon that may run on this host already.
            "HEARTH_NETWORK_CIDR": "10.110.1.0/24",
        }
        self.process = subprocess.Popen(
            [self.binary, "serve", "--data-dir", str(self.data), "--listen", "127.0.0.1:0"],
            cwd=directory,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        lines = queue.Queue()
        threading.Thread(target=self._listen, args=(lines,), daemon=True).start()
        try:
            self.url = lines.get(timeout=30)
        except queue.Empty:
            self.process.kill()
            raise AssertionError("the daemon did not get ready:\n" + "\n".join(self.log)) from None

    def _listen(self, ready):
        for line in self.process.stderr:
            self.log.append(line.rstrip())
            if line.startswith(READY):
                ready.put(line[len(READY) :].split(",")[0])

    def __call__(self, *arguments):
        """Runs the command line, which must succeed, and returns what it printed."""
        done = subprocess.run(
            [self.binary, *arguments],
            env={**os.environ, "HEARTH_URL": self.url},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"hearth {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def complaints(self):
        """Warnings and errors of the daemon."""
        for line in self.log:
            try:
                level = json.loads(line).get("level")
            except ValueError:
                level = "ERROR" if "panicked" in line else None
            if level in ("WARN", "ERROR"):
                yield line

    def vmms(self):
        """Processes that work in an instance's directory."""
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    directory = os.readlink(process / "cwd")
                except OSError:
                    continue
                if directory.startswith(f"{self.data}/"):
                    yield int(process.name)

    def end(self):
        """Ends the daemon as systemd would; its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def clean(self):
        """Leaves nothing running, whatever happened."""
        self.process.kill()
        self.process.wait()
        for pid in self.vmms():
            os.kill(pid, signal.SIGKILL)


def write_image(directory):
    """An OCI layout: busybox, a user, and a program that counts in its memory."""
    counter = (
        "#!/bin/sh\nmkfifo /run/out /run/in; count=0\necho counter ready\n"
        'while read -r add < /run/in; do count=$((count + add)); echo "$count" > /run/out; done\n'
    )
    count = '#!/bin/sh\nuntil [ -p /run/in ]; do sleep 0.05; done; echo "$1" > /run/in; cat /run/out\n'
    layer = BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:

        def add(path, mode, kind=tarfile.REGTYPE, content=b"", target=""):
            entry = tarfile.TarInfo(path)
            entry.mode, entry.type, entry.size, entry.linkname = mode, kind, len(content), target
            tar.addfile(entry, BytesIO(content))

        for path in ("bin", "dev", "etc", "proc", "root", "run", "srv", "sys"):
            add(path, 0o755, tarfile.DIRTYPE)
        add("tmp", 0o1777, tarfile.DIRTYPE)
        add("bin/busybox", 0o755, content=Path("/bin/busybox").read_bytes())
        for name in ("sh", "cat", "mkfifo", "sleep"):
            add(f"bin/{name}", 0o777, tarfile.SYMTYPE, target="busybox")
        add("bin/counter", 0o755, content=counter.encode())
        add("bin/count", 0o755, content=count.encode())
        add("etc/passwd", 0o644, content=b"root:x:0:0::/root:/bin/sh\n")
        add("srv/link", 0o777, tarfile.SYMTYPE, target="/etc/passwd")

    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(media, content):
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(content)}

    kind = "application/vnd.oci.image"
    rootfs = blob(f"{kind}.layer.v1.tar", layer.getvalue())
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/bin/sh"], "Cmd": ["/bin/counter"], "Env": ["COLOUR=red"], "WorkingDir": "/srv"},
        "rootfs": {"type": "layers", "diff_ids": [rootfs["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": blob(f"{kind}.config.v1+json", json.dumps(config).encode()),
        "layers": [rootfs],
    }
    manifest = blob(f"{kind}.manifest.v1+json", json.dumps(manifest).encode())
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


@pytest.fixture(scope="session")
def hearth():
    """The daemon. At the end nothing may be left, and it may not have complained."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="hearth-sdk-") as directory:
        directory = Path(directory)
        daemon = Hearth(directory)
        try:
            (directory / "image").mkdir()
            write_image(directory / "image")
            daemon("image", "import", str(directory / "image"), "--name", IMAGE)
            yield daemon
            assert daemon.end() == 0
            assert list(daemon.vmms()) == []
            assert list((daemon.data / "instances").iterdir()) == []
            assert list(daemon.complaints()) == []
        finally:
            daemon.clean()


@pytest.fixture(scope="session")
def client(hearth):
    """The SDK's client, which checks every answer against its own types."""
    os.environ["HYPEMAN_BASE_URL"] = hearth.url
    return Hypeman(api_key="x", max_retries=0, _strict_response_validation=True)


@pytest.fixture
def boot(client, request):
    """Makes instances, and removes them and their forks and snapshots after the test."""

    def make(name, **fields):
        fields = {"image": IMAGE, "size": "128MB", **fields}
        return client.instances.create(name=name, **fields)

    yield make
    for instance in client.instances.list():
        client.instances.delete(instance.id)
    for snapshot in client.snapshots.list():
        client.snapshots.delete(snapshot.id)


@pytest.fixture
def count(hearth):
    """Has an instance's counter count on, and returns how far it is."""
    return lambda name, add: int(hearth("exec", name, "--", "count", str(add)))
