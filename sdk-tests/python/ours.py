"""What we send beyond the SDK's types: it must be known here, and be nothing else."""

OURS = {
    "Instance": {"busy", "end", "forked_from", "generation"},
    "Network": {"allow", "outbound", "ports"},
    "InstanceStats": {"memory_private_bytes"},
    "Image": {"user"},
    "Snapshot": {"memory_bytes", "base", "damage"},
    "Resources": {"files", "processes"},
    "CapabilitiesRuntime": {"accel", "reason"},
    "DiskBreakdown": {"snapshots_bytes"},
}


def checked(model):
    """The model, in which nothing is that neither the SDK nor this table knows."""
    extra = set(model.model_extra or {})
    assert extra <= OURS.get(type(model).__name__, set()), f"{type(model).__name__}: {extra}"
    for name in type(model).model_fields:
        value = getattr(model, name)
        for part in value if isinstance(value, list) else [value]:
            if hasattr(part, "model_extra"):
                checked(part)
    return model
