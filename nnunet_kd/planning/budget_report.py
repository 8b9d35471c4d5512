"""A proposal of budget.py as a text table and as a picture."""

from __future__ import annotations

import os
from pathlib import Path

from nnunet_kd.planning.budget import Proposal, short
from nnunet_kd.utils.tables import aligned_table

_TITLES = {"torch": "torch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def proposal_table(proposal: Proposal) -> str:
    """Teacher and students, one a line; the chosen one is marked with an arrow."""
    backends = [b for b in proposal.backends if any(b in s.measured for s in proposal.students)]
    memory = "memory" in proposal.teacher.measured
    rows = [["", "network", "parameters", "", "FLOPs", *(f"{_TITLES[b]} ms" for b in backends), *["peak MB"] * memory]]
    for one in [proposal.teacher, *proposal.students]:
        name = f"teacher {'-'.join(map(str, one.features))}" if one is proposal.teacher else one.name
        rows.append(
            [
                "->" if one is proposal.chosen else "",
                name,
                f"{one.parameters:,}",
                f"{100 * one.parameters / proposal.teacher.parameters:.2f}%",
                short(one.flops),
                *(f"{one.measured[b]:.1f}" if b in one.measured else "-" for b in backends),
                *([f"{one.measured['memory']:.0f}"] if memory else []),
            ]
        )
    note = f"(one forward of one patch; medians, all in turn, {proposal.threads} CPU threads; peak memory: torch, with weights)"
    return f"{aligned_table(rows, texts=2)}\n{note}"


def draw(proposal: Proposal, file: Path) -> Path:
    """The front as a PNG: milliseconds per patch over parameters, one line per backend, the teacher and the choice marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for backend in proposal.backends:
        shown = [s for s in proposal.students if backend in s.measured]
        (line,) = axes.plot([s.parameters for s in shown], [s.measured[backend] for s in shown], "o-", label=_TITLES[backend])
        if backend in proposal.teacher.measured:
            axes.plot(proposal.teacher.parameters, proposal.teacher.measured[backend], "s", color=line.get_color())
    axes.plot([], [], "s", color="grey", label="teacher")
    if proposal.chosen is not None:
        axes.axvline(proposal.chosen.parameters, color="grey", linewidth=6, alpha=0.25, zorder=0, label="chosen")
    if proposal.budget.milliseconds is not None:
        axes.axhline(proposal.budget.milliseconds, color="black", linestyle=":")
    if proposal.budget.parameters is not None:
        axes.axvline(proposal.budget.parameters, color="black", linestyle=":")
    if str(proposal.budget):
        axes.plot([], [], color="black", linestyle=":", label=str(proposal.budget))
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel=f"ms per patch, {proposal.threads} CPU threads")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    temporary = file.with_name(f".{file.stem}.tmp.png")
    try:
        figure.savefig(temporary, dpi=120)
        os.replace(temporary, file)
    finally:
        plt.close(figure)
        temporary.unlink(missing_ok=True)
    return file
