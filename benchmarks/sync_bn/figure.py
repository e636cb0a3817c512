"""The plot of bytes against ranks."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FIGURE = ROOT / "docs" / "images" / "communication.png"
COLOURS = ("#1b6ca8", "#c0504d")


def draw(bytes_by_layer: Mapping[str, Mapping[int, float]], channels: int, file: Path = FIGURE) -> str:
    """Plots each layer's bytes by world size into `file`; returns a note on it. Needs matplotlib."""
    if not find_spec("matplotlib"):
        return "No figure: matplotlib is not installed."
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log", yscale="log")
    for (layer, sent), colour in zip(bytes_by_layer.items(), COLOURS, strict=True):
        axes.plot(list(sent), list(sent.values()), marker="o", color=colour, label=layer)
    world_sizes = list(next(iter(bytes_by_layer.values())))
    axes.set_xticks(world_sizes, [f"{world_size:,}" for world_size in world_sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda bytes_, _: f"{bytes_ / 1e3:,g} kB")
    axes.set(
        xlabel="ranks",
        ylabel="sent by each rank",
        title=f"A layer of {channels} channels, forward and backward",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name
    return f"Figure: {name}."
