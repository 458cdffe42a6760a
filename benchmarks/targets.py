"""Upper bounds by record id; a record without one has no target."""

TARGETS: dict[str, float] = {
    "1-batch32": 0.35,
    "1-batch128": 0.42,
    "1-batch512": 0.50,
    "2-batch128": 0.95,
    "3-batch32": 1.05,
    "3-batch128": 1.05,
    "3-batch512": 1.05,
    "4-gradual": 1.10,
    "5-epoch": 1.00,
    "5-frame": 0.05,
    **{f"6-tasks{tasks}": 0.80 for tasks in (2, 4, 8)},
    **{f"6-tasks{tasks}-beyondml": 0.50 for tasks in (2, 4, 8)},
    **{f"7-state{tasks}": 1.30 for tasks in (1, 5, 10, 50)},
    **{f"7-peak{tasks}": 1.05 for tasks in (5, 10, 50)},
    "8-switch": 1.00,
    "9-density0.1": 1.08,
    "9-density0.02": 1.08,
    "9-network": 1.08,
    **{f"10-density{density}-batch{batch}": 1.00 for density in (0.1, 0.05, 0.02) for batch in (1, 32, 256)},
    "10-density0.1-batch32": 0.35,
    "10-density0.05-batch32": 0.35,
    "11-fc": 0.25,
    "11-conv": 0.25,
    "11-fc-step128": 0.16,
    "11-conv-step128": 0.30,
    "11-fc-frozen32": 0.25,
    "11-conv-frozen32": 0.30,
    "block-fc-step128": 0.35,
    "block-transformer-step128": 0.50,
    **{
        f"compile-fc-{kind}-{what}{batch}": 1.0
        for kind in ("weight", "block", "unit")
        for what in ("step", "frozen")
        for batch in (32, 128, 512)
    },
    **{
        f"compile-{network}-unit-{what}{batch}": 1.0
        for network, batch in (("resnet", 64), ("vit", 32), ("gpt", 16))
        for what in ("step", "frozen")
    },
    "12-import": 0.10,
    "12-help": 1.0,
    "12-inspect": 1.0,
    "12-first-step": 1.3,
    "12-unused": 0,
    **{f"13-{size}": 1.10 for size in ("10M", "100M")},
    **{f"13-{what}": 1.10 for what in ("allocation", "pruning", "freezing", "saving", "guarantee")},
    "13-share": 0.05,
    "14-overhead": 1.03,
    "14-calls": 0.03,
    **{f"16-{kind}-{id}": 1.00 for kind in ("numbers", "raw") for id in ("median", "p99", "rate")},
    **{f"16-{id}": 0.25 for id in ("numbers-own", "raw-own", "tensors")},
    **{f"17-all-batch{batch}": 1.50 for batch in (1, 32, 512)},
    **{f"19-{network}-weight": 1.05 for network in ("resnet", "vit", "gpt")},
    **{f"19-{network}-block": 0.70 for network in ("vit", "gpt")},
    **{f"19-{network}-unit": 0.35 for network in ("resnet", "vit", "gpt")},
    **{
        f"20-{network}-{kind}": 1.05
        for network in ("fc", "resnet", "vit", "gpt")
        for kind in ("weight", "block", "unit")
    },
    **{
        f"gpu-{network}-{kind}-{precision}-step": target
        for network in ("fc", "conv", "resnet", "vit", "gpt")
        for precision in ("tf32", "bf16")
        for kind, target in (("weight", 1.0), ("block", 0.8), ("unit", 0.3))
    },
}

ON_INTEL: dict[str, float] = {
    "1-batch32": 0.45,
    "1-batch128": 0.55,
    "1-batch512": 0.75,
    "10-density0.1-batch32": 0.42,
}
"""Those that differ on Intel's processors, whose sparse products are slower beside the dense ones."""


def target_of(id: str, maker: str) -> float | None:
    """Return a record's upper bound on a maker's processors."""
    bounds = TARGETS | ON_INTEL if maker == "Intel" else TARGETS
    return bounds.get(id)
