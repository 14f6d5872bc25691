"""What is done to generated requests before they are sent, so that they meet something and end.

Half of them name what is really there instead of what was made up: a request for an instance that
does not exist is refused before anything else is looked at. Nothing that is there is removed.
"""

import os

import schemathesis

# What run.py made.
THERE = {"id": ["web", "still", "off"], "snapshot_id": ["one"], "name": ["app"]}
REMOVES = "DELETE"
# How a duration ends that may be long; none at all is a minute.
LONG = ("s", "m", "h", "")
NOWHERE = os.environ["HEARTH_NOWHERE"]


def chosen(text, among):
    """Always the same choice for the same text, so that a run can be repeated; half of the time none."""
    number = sum(str(text).encode(errors="replace"))
    return among[number // 2 % len(among)] if number % 2 == 0 else None


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    if path_parameters and context.operation.method.upper() != REMOVES:
        for parameter, value in path_parameters.items():
            there = chosen(value, THERE[parameter]) if parameter in THERE else None
            if there is not None:
                path_parameters[parameter] = there
    return path_parameters


@schemathesis.hook
def before_call(context, case, kwargs):
    """Nothing waits for longer than the step has, and no path of this machine is read."""
    if isinstance(case.query, dict):
        if case.query.get("follow") not in (None, False, "false"):
            case.query["follow"] = "false"
    # What is no duration stays: to be refused is what it is for.
    if case.path.endswith("/wait") and str((case.query or {}).get("timeout", ""))[-1:] in LONG:
        case.query = {**(case.query or {}), "timeout": "100ms"}
    if isinstance(case.body, dict) and isinstance(case.body.get("path"), str) and case.body["path"].startswith("/"):
        case.body["path"] = NOWHERE + case.body["path"]
