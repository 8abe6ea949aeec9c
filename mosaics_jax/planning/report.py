"""A plan as text and as JSON."""

from typing import Any

from mosaics_jax.planning.plan import Plan
from mosaics_jax.planning.topology import GIB


def report(plan: Plan, topology: str, utilisation: float) -> str:
    """The plan as text; products are assumed to reach the share ``utilisation`` of the peak."""
    used = sum(plan.memory.values())
    mesh = ",".join(f"{name}:{size}" for name, size in plan.mesh.items())
    lines = [
        f"{topology}: {plan.devices} chips, mesh {mesh}",
        "",
        f"memory a chip: {used / GIB:.2f} of {plan.hbm / GIB:.2f} GiB ({used / plan.hbm:.0%})",
        *(f"  {name:<18}{size / GIB:8.2f} GiB" for name, size in plan.memory.items()),
        "",
        f"model FLOPs a step: {plan.model_flops:.3e} over all chips, {plan.model_flops / plan.tokens:.3e} a token",
        f"executed FLOPs:     {plan.executed_flops * plan.devices:.3e} over all chips, in products of matrices",
        "",
        "sent by a chip in a step, at least:",
        *(
            f"  {kind:<18}{sent / GIB:8.3f} GiB in {count:,}"
            for kind, (count, sent) in sorted(plan.traffic.collectives.items())
        ),
    ]
    if plan.traffic.uncounted_loops:
        lines.append(f"  ({plan.traffic.uncounted_loops} loops of unknown length counted once)")
    seconds = plan.seconds(utilisation)
    assumed = {
        "products": f"executed FLOPs at {utilisation:.0%} of {plan.chip.flops / 1e12:.0f} TFLOP/s",
        "memory": f"{plan.traffic.hbm / GIB:.1f} GiB at {plan.chip.hbm_rate / 1e9:.0f} GB/s",
        "links": f"collectives at {plan.chip.link_rate / 1e9:.0f} GB/s, on rings, without latency",
    }
    least, most = max(seconds.values()), sum(seconds.values())
    rate, peak = plan.tokens / least, plan.devices * plan.chip.flops
    lines += [
        "",
        f"estimated step: {least:.3g} s, the largest of these (all overlap); {most:.3g} s, their sum, if nothing does",
        *(f"  {name:<18}{time:8.3g} s    {assumed[name]}" for name, time in seconds.items()),
        f"at the largest: {rate:,.0f} tokens/s, {plan.model_flops / (least * peak):.0%} of the peak in model FLOPs",
    ]
    return "\n".join(lines)


def as_json(plan: Plan, utilisation: float) -> dict[str, Any]:
    """The plan as JSON-able numbers, in bytes and seconds."""
    return {
        "devices": plan.devices,
        "mesh": plan.mesh,
        "parameters": plan.parameters,
        "tokens": plan.tokens,
        "memory": plan.memory,
        "hbm": plan.hbm,
        "model_flops": plan.model_flops,
        "executed_flops_per_device": plan.executed_flops,
        "collectives": {kind: {"count": n, "bytes": sent} for kind, (n, sent) in plan.traffic.collectives.items()},
        "hbm_bytes": plan.traffic.hbm,
        "utilisation": utilisation,
        "seconds": plan.seconds(utilisation),
    }
