#!/usr/bin/env python3
"""The API as its own document says it is: schemathesis against a daemon with simulated VMMs.

In: HEARTH_BIN, HEARTH_SIMULATED (the simulated Firecracker), and `st` beside this interpreter. Out:
success only if no answer was a 5xx, every answer was one that the document tells, none took longer
than its limit, and the daemon has not panicked and ends when it is told to. Arguments are passed on,
as in `run.py -n 500 --seed 7`; a short run with a fixed seed without them.
"""

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

READY = "hearth: ready on "
# Every answer is there by then; waits are cut to a second by the hooks.
LONGEST_ANSWER_S = 15
SHORT = ["-n", "5", "--seed", "1"]


class Daemon:
    def __init__(self, directory):
        self.binary = os.environ["HEARTH_BIN"]
        self.data = directory / "data"
        self.log = []
        kernel = directory / "vmlinux"
        # Any ELF: what the simulated VMM boots has an agent, and no kernel.
        kernel.write_bytes(b"\x7fELF\x02\x01\x01".ljust(4096, b"\0"))
        env = {
            "HEARTH_DEFAULTS_HYPERVISOR": "firecracker",
            "HEARTH_FIRECRACKER_PATH": os.environ["HEARTH_SIMULATED"],
            "HEARTH_FIRECRACKER_KVM": "trust",
            "HEARTH_KERNEL_IMAGE": str(kernel),
            "HEARTH_KERNEL_INITRD": "none",
            "HEARTH_NETWORK_MODE": "user",
            "HEARTH_DEFAULTS_OVERLAY": "64 MB",
            "HEARTH_LIMITS_FORK_COUNT": "4",
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
            sys.exit("the daemon did not get ready:\n" + "\n".join(self.log))

    def _listen(self, ready):
        for line in self.process.stderr:
            self.log.append(line.rstrip())
            if line.startswith(READY):
                ready.put(line[len(READY) :].split(",")[0])

    def __call__(self, *arguments):
        """Runs the command line, which must succeed."""
        subprocess.run(
            [self.binary, *arguments],
            env={**os.environ, "HEARTH_URL": self.url},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=60,
            check=True,
        )

    def clean(self):
        """Leaves nothing running, whatever happened."""
        self.process.kill()
        self.process.wait()
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    if os.readlink(process / "cwd").startswith(f"{self.data}/"):
                        os.kill(int(process.name), signal.SIGKILL)
                except OSError:
                    continue


def main(arguments):
    with tempfile.TemporaryDirectory(prefix="hearth-schemathesis-") as directory:
        directory = Path(directory)
        daemon = Daemon(directory)
        try:
            image = directory / "image" / "bin"
            image.mkdir(parents=True)
            (image / "app").write_text("app")
            daemon("image", "import", str(directory / "image"), "--name", "app")
            for name in ("web", "still", "off"):
                daemon("run", "--name", name, "--size", "128MB", "--no-network", "app", "--", "/bin/app")
            daemon("snapshot", "create", "web", "--name", "one")
            daemon("standby", "still")
            daemon("stop", "off")
            tested = subprocess.run(
                [
                    Path(sys.executable).with_name("st"),
                    *("--config-file", Path(__file__).with_name("schemathesis.toml")),
                    "run",
                    f"{daemon.url}/spec.json",
                    *("--phases", "examples,coverage,fuzzing"),
                    *("--request-timeout", str(LONGEST_ANSWER_S)),
                    *("--warnings", "off"),
                    *("--suppress-health-check", "all"),
                    "--continue-on-failure",
                    *(arguments or SHORT),
                ],
                cwd=directory,
                env={
                    **os.environ,
                    "PYTHONPATH": str(Path(__file__).parent),
                    "SCHEMATHESIS_HOOKS": "hooks",
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "HEARTH_NOWHERE": str(directory / "nowhere"),
                },
                stdin=subprocess.DEVNULL,
            )
            panics = [line for line in daemon.log if "panicked" in line]
            daemon.process.terminate()
            ended = daemon.process.wait(timeout=60)
        finally:
            daemon.clean()
    for line in panics:
        print(line)
    if ended != 0:
        print(f"the daemon ended with {ended}")
    return 0 if tested.returncode == 0 and not panics and ended == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
