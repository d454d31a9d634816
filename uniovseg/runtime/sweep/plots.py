"""Plots of a sweep, each as an HTML page that needs nothing else, and as PNG: its trials over parallel axes, and the best score of each scale set."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from uniovseg.runtime.sweep.config import SweepConfig
from uniovseg.runtime.sweep.tuner import TrialResult

COLOURS = "viridis"


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of the parallel plot.

    Attributes:
        label: its title.
        places: where each trial meets it.
        ticks: places that are labelled, with their labels; empty for plain numbers.
    """

    label: str
    places: list[float]
    ticks: list[tuple[float, str]]


def shown(value: Any) -> str:
    """A value for a person: a scale set ``[640, 768]`` as 640+768, a number with three digits."""
    if isinstance(value, str) and value.startswith("["):
        return "+".join(map(str, json.loads(value)))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def axes_of(config: SweepConfig, results: Sequence[TrialResult], figures: Sequence[str]) -> list[Axis]:
    """An axis for each key and each figure; a list of values is spread evenly, a logarithmic range by its logarithm."""
    axes = []
    for key, space in config.space.items():
        values = [result.values[key] for result in results]
        if space.listed is not None:
            order = {value: float(place) for place, value in enumerate(space.listed)}
            ticks = [(place, shown(value)) for value, place in order.items()]
            axes.append(Axis(key, [order[value] for value in values], ticks))
        elif space.log_uniform:
            low, high = (math.log10(end) for end in (min(*values, *space.log_uniform), max(*values, *space.log_uniform)))
            ticks = [(place, shown(10**place)) for place in np.linspace(low, high, 5).tolist()]
            axes.append(Axis(key, [math.log10(value) for value in values], ticks))
        else:
            axes.append(Axis(key, [float(value) for value in values], []))
    return axes + [Axis(name, [float(result.metrics[name]) for result in results], []) for name in figures]


def parallel_html(title: str, axes: Sequence[Axis]) -> str:
    """The parallel plot as a page: ranges of an axis can be picked. The last axis gives the colour."""
    dimensions = [
        {"label": axis.label, "values": axis.places}
        | ({"tickvals": [place for place, _ in axis.ticks], "ticktext": [text for _, text in axis.ticks]} if axis.ticks else {})
        for axis in axes
    ]
    line = {"color": axes[-1].places, "colorscale": COLOURS, "showscale": True}
    figure = go.Figure(go.Parcoords(dimensions=dimensions, line=line, labelangle=-15), layout={"title": title, "margin": {"t": 130}})
    return str(figure.to_html(include_plotlyjs=True))


def parallel_png(title: str, axes: Sequence[Axis]) -> bytes:
    """The parallel plot as a picture; the last axis gives the colour."""
    figure = Figure(figsize=(max(8.0, 2.2 * len(axes)), 6), layout="constrained")
    plot = figure.subplots()
    spans = [_span(axis) for axis in axes]
    heights = np.array([[(place - low) / (high - low) for place in axis.places] for axis, (low, high) in zip(axes, spans, strict=True)])
    for trial in np.argsort(heights[-1]):
        plot.plot(heights[:, trial], color=mpl.colormaps[COLOURS](heights[-1, trial]), alpha=0.7)
    for place, (axis, (low, high)) in enumerate(zip(axes, spans, strict=True)):
        plot.axvline(place, color="0.3", linewidth=1)
        ticks = axis.ticks or [(tick, f"{tick:.3g}") for tick in np.linspace(low, high, 5).tolist()]
        for tick, text in ticks:
            plot.text(place + 0.03, (tick - low) / (high - low), text, fontsize=6, va="center")
    plot.set_xticks(range(len(axes)), [axis.label for axis in axes], rotation=15)
    plot.set_xlim(-0.2, len(axes) - 0.4)
    plot.set_yticks([])
    plot.set_title(title)
    return _png(figure)


def _span(axis: Axis) -> tuple[float, float]:
    """The lowest and highest place of an axis, never the same."""
    places = [*axis.places, *(place for place, _ in axis.ticks)]
    low, high = min(places), max(places)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def best_by_set(results: Sequence[TrialResult]) -> dict[str, TrialResult]:
    """The best trial of each scale set, small sets first."""
    found: dict[str, TrialResult] = {}
    for result in results:
        sizes = result.values["sizes"]
        if sizes not in found or result.metrics["score"] > found[sizes].metrics["score"]:
            found[sizes] = result
    return {shown(sizes): found[sizes] for sizes in sorted(found, key=lambda text: (len(json.loads(text)), json.loads(text)))}


def bars_html(title: str, bars: Mapping[str, TrialResult], score: str) -> str:
    """The best score of each scale set as a page; a bar says by which values, and its other figures."""
    texts = ["<br>".join(f"{key}: {shown(value)}" for key, value in (*bar.values.items(), *bar.metrics.items())) for bar in bars.values()]
    heights = [bar.metrics["score"] for bar in bars.values()]
    counts = [name.count("+") + 1 for name in bars]
    figure = go.Figure(go.Bar(x=list(bars), y=heights, hovertext=texts, marker={"color": counts, "colorscale": COLOURS}))
    figure.update_layout(title=title, yaxis_title=score, xaxis={"type": "category", "tickangle": -60})
    return str(figure.to_html(include_plotlyjs=True))


def bars_png(title: str, bars: Mapping[str, TrialResult], score: str) -> bytes:
    """The best score of each scale set as a picture; the colour says how many sizes it has."""
    figure = Figure(figsize=(max(8.0, 0.4 * len(bars)), 6), layout="constrained")
    plot = figure.subplots()
    counts = [name.count("+") + 1 for name in bars]
    colours = [mpl.colormaps[COLOURS](count / max(counts)) for count in counts]
    plot.bar(range(len(bars)), [bar.metrics["score"] for bar in bars.values()], color=colours)
    plot.set_xticks(range(len(bars)), list(bars), rotation=60, ha="right", fontsize=7)
    plot.set_ylabel(score)
    plot.set_title(title)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
