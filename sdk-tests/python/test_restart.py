"""An instance that ends by itself boots again as its policy says."""

import time

from hypeman.types import RestartPolicy, RestartStatus

from ours import checked

# Fails twice, then stays: what it has written is on its disk, which it keeps.
TWICE = ["sh", "-c", "for try in /one /two; do [ -e $try ] || { > $try; exit 1; }; done; exec /bin/counter"]
FAILS = ["sh", "-c", "exit 3"]
EVERY = {"policy": "on_failure", "backoff": "100ms"}


def eventually(look):
    """What it finds, once it finds something."""
    until = time.monotonic() + 120
    while not (found := look()):
        assert time.monotonic() < until, "not within 120 s"
        time.sleep(0.05)
    return found


def test_restarted_until_it_stays(client, boot, hearth):
    boot("web", entrypoint=TWICE, restart_policy={**EVERY, "max_attempts": 5, "stable_after": "1h"})

    def third():
        seen = checked(client.instances.get("web"))
        return seen if seen.state == "Running" and seen.restart_status.attempts == 2 else None

    seen = eventually(third)
    assert isinstance(seen.restart_policy, RestartPolicy) and isinstance(seen.restart_status, RestartStatus)
    policy = seen.restart_policy
    assert (policy.policy, policy.backoff, policy.max_attempts) == ("on_failure", "100ms", 5)
    assert policy.stable_after == "1h0m0s"
    status = seen.restart_status
    assert status.last_attempt_at is not None and status.next_attempt_at is None and status.blocked_reason is None

    hearth("exec", "web", "--", "sh", "-c", "[ -e /one ] && [ -e /two ]")
    assert client.instances.get("web").state == "Running"
    stopped = checked(client.instances.stop("web"))
    assert stopped.restart_status.blocked_reason == "manual_stop"
    time.sleep(0.5)
    assert client.instances.get("web").state == "Stopped"


def test_given_up_and_another_policy(client, boot):
    boot("web", entrypoint=FAILS, restart_policy={**EVERY, "max_attempts": 1})

    def given_up():
        seen = checked(client.instances.get("web"))
        return seen if seen.restart_status.blocked_reason else None

    seen = eventually(given_up)
    assert (seen.state, seen.exit_code) == ("Stopped", 3)
    assert (seen.restart_status.blocked_reason, seen.restart_status.attempts) == ("max_attempts_exceeded", 1)

    never = checked(client.instances.update("web", restart_policy={"policy": "never"}))
    assert never.restart_policy is None and never.restart_status is None
    always = checked(client.instances.update("web", restart_policy={"policy": "always"}))
    assert (always.restart_policy.policy, always.restart_policy.backoff) == ("always", "5s")
    assert (always.state, always.restart_status.attempts) == ("Stopped", 0)
