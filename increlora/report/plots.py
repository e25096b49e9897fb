"""Drawing: tidy numbers in, a figure out. What is drawn is decided in `increlora.report.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from increlora.glue.tasks import TASKS
from increlora.report import style
from increlora.report.modules import MATRICES
from increlora.report.style import Look

_UNITS = {"cola": "Matthews correlation (%)", "stsb": "Mean correlation (%)", "mnli": "Accuracy, mean of m/mm (%)"}
_MATH = {name: f"$W_{{{name[2:]}}}$" for name in MATRICES}
_MATRIX_COLOURS = dict(
    zip(MATRICES, (style.SKY, style.BLUE, style.GREEN, style.YELLOW, style.ORANGE, style.VERMILLION), strict=True)
)


def figure4(
    data: pd.DataFrame,
    tasks: Sequence[str],
    looks: Mapping[str, Look],
    references: Sequence[tuple[str, str, int | None, float]] = (),
    note: str = "",
) -> Figure:
    """Score against the budget: a panel per task, 95 % intervals over seeds, parameters below the ranks."""
    budgets = sorted(set(data["budget"]))
    fig = style.figure(style.DOUBLE if len(tasks) > 1 else style.SINGLE, 2.75)
    axes = fig.subplots(1, len(tasks), squeeze=False)[0]
    methods = list(dict.fromkeys(data["method"]))
    for ax, task in zip(axes, tasks, strict=True):
        for number, method in enumerate(methods):
            rows = data[(data["task"] == task) & (data["method"] == method)].sort_values("budget")
            look, shift = looks[method], 0.12 * (number - (len(methods) - 1) / 2)
            x = np.array([budgets.index(budget) for budget in rows["budget"]]) + shift
            spread = np.nan_to_num(np.array([rows["mean"] - rows["ci_low"], rows["ci_high"] - rows["mean"]]))
            ax.errorbar(x, rows["mean"], spread, color=look.colour, marker=look.marker, capsize=2.5, elinewidth=1)
            for _, _, budget, value in [one for one in references if one[:2] == (task, method)]:
                if budget is None:
                    ax.axhline(value, color=look.colour, linestyle=":", linewidth=1.2)
                elif budget in budgets:
                    place = budgets.index(budget) + shift
                    ax.plot(place, value, marker="*", markersize=9, color=look.colour, markerfacecolor="white")
        ax.set_title(TASKS[task].title)
        if not (data["task"] == task).any():
            _no_records(ax)
            continue
        ax.set_ylabel(_UNITS.get(task, "Accuracy (%)"))
        sizes = data[data["task"] == task].groupby("budget")["params_mean"].mean()
        ax.set_xticks(range(len(budgets)), [f"{b}\n{_about(sizes.get(b))}" for b in budgets])
        ax.set_xlim(-0.4, len(budgets) - 0.6)
        ax.grid(axis="x", visible=False)
        ax.set_xlabel("Average rank per module\n(about so many trainable parameters)")
    titles = dict(zip(data["method"], data["title"], strict=True))
    handles = [_handle(looks[m], titles[m]) for m in methods]
    if any(budget is not None for _, _, budget, _ in references):
        handles.append(
            Line2D(
                [], [], color="k", marker="*", markersize=9, markerfacecolor="white", linestyle="", label="published"
            )
        )
    if any(budget is None for _, _, budget, _ in references):
        handles.append(Line2D([], [], color="k", linestyle=":", linewidth=1.2, label="published, best over budgets"))
    shown = "mean and 95 % interval over seeds" if int(data["seeds"].max()) > 1 else "one seed"
    _legend(fig, handles, f"{shown}, {note}" if note else shown)
    return fig


def _legend(fig: Figure, handles: Sequence[Line2D], note: str) -> None:
    """A legend above the panels, where it covers no data, with a line on what is shown."""
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles), title=note or None, title_fontsize=8)


def _no_records(ax: Axes) -> None:
    ax.text(0.5, 0.5, "no records", ha="center", va="center", transform=ax.transAxes)
    ax.set_axis_off()


def _about(value: float | None) -> str:
    """Parameters in two significant digits: 340K, 1.3M."""
    if value is None:
        return ""
    rounded = float(f"{value:.2g}")
    return f"{rounded / 1e6:g}M" if rounded >= 1e6 else f"{rounded / 1e3:g}K" if rounded >= 1e3 else f"{rounded:g}"


def _seeds(number: int) -> str:
    return "one seed" if number == 1 else f"mean of {number} seeds"


def _handle(look: Look, label: str) -> Line2D:
    return Line2D([], [], color=look.colour, marker=look.marker, label=label)


def figure5(data: pd.DataFrame, note: str = "") -> Figure:
    """Orthogonality of A and of B over training: mean over seeds, band from the least to the greatest."""
    fig = style.figure(style.DOUBLE, 2.6)
    axes = fig.subplots(1, 2, sharey=True)
    drawn: dict[str, tuple[str, Literal["-", "--"], str]] = {
        "with": (style.VERMILLION, "-", "with advance learning"),
        "without": (style.BLUE, "--", "without advance learning"),
    }
    norms = {"A": r"$\|AA^\top - I\|_F^2$", "B": r"$\|B^\top B - I\|_F^2$"}
    for ax, factor in zip(axes, ("A", "B"), strict=True):
        for advance, (colour, line, _) in drawn.items():
            rows = data[(data["factor"] == factor) & (data["advance"] == advance)].sort_values("step")
            ax.fill_between(rows["step"], rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
            ax.plot(rows["step"], rows["mean"], color=colour, linestyle=line)
        ax.set_title(norms[factor])
        ax.set_xlabel("Step")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_xlim(left=0)
    axes[0].set_ylabel("Orthogonality loss,\nmean over modules")
    positive = data[["low", "mean"]].to_numpy(dtype=float).min() > 0
    if positive and data["high"].max() > 20 * data["low"].min():
        axes[0].set_yscale("log")
    else:
        axes[0].set_ylim(bottom=0)
    handles = [
        Line2D(
            [],
            [],
            color=colour,
            linestyle=line,
            label=label if (data["advance"] == advance).any() else f"{label}: no records",
        )
        for advance, (colour, line, label) in drawn.items()
    ]
    seeds = int(data["seeds"].max())
    _legend(fig, handles, f"{note}; {_seeds(seeds)}" + (", band: least to greatest" if seeds > 1 else ""))
    return fig


def figure6(data: pd.DataFrame, titles: Mapping[str, str], note: str = "") -> Figure:
    """Final ranks as heat maps side by side on one colour scale, the numbers in the cells."""
    layers = sorted(set(data["layer"]))
    fig = style.figure(style.DOUBLE, 1.1 + 0.23 * len(layers))
    fig.suptitle(f"Final ranks {note}", fontsize=8)
    axes = fig.subplots(1, len(titles), squeeze=False)[0]
    low, high = float(data["rank"].min()), float(data["rank"].max())
    whole = bool((data["rank"] % 1 == 0).all())
    image = None
    for ax, (method, title) in zip(axes, titles.items(), strict=True):
        rows = data[data["method"] == method]
        if rows.empty:
            ax.set_title(title)
            _no_records(ax)
            continue
        grid = rows.pivot(index="layer", columns="matrix", values="rank").reindex(index=layers, columns=list(MATRICES))
        seeds = int(rows["seeds"].max())
        ax.set_title(f"{title} ({_seeds(seeds)})")
        ax.set_xticks(range(len(MATRICES)), [_MATH[name] for name in MATRICES])
        ax.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        ax.set_ylabel("Layer" if image is None else "")
        ax.tick_params(labelleft=image is None)
        image = _heat_map(ax, grid, low, max(high, low + 1), whole)
    if image is not None:
        bar = fig.colorbar(image, ax=list(axes), label="Final rank", pad=0.02, aspect=30)
        bar.outline.set_visible(False)
    return fig


def _heat_map(ax: Axes, grid: pd.DataFrame, low: float, high: float, whole: bool) -> AxesImage:
    image = ax.imshow(grid.to_numpy(dtype=float), cmap=style.MAP, vmin=low, vmax=high, aspect="auto")
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    for (row, column), value in np.ndenumerate(grid.to_numpy(dtype=float)):
        if not np.isnan(value):
            colour = "white" if (value - low) / (high - low) < 0.55 else "black"
            ax.text(column, row, f"{value:.{0 if whole else 1}f}", ha="center", va="center", color=colour)
    return image


def growth(data: pd.DataFrame, budget: float | None = None, note: str = "") -> Figure:
    """Growth of ranks over training: total by kind of matrix (stacked), and by layer (heat map)."""
    fig = style.figure(style.DOUBLE, 2.9)
    left, right = fig.subplots(1, 2)
    seeds = int(data["seeds"].iloc[0])
    by_matrix = data.pivot_table(index="step", columns="matrix", values="rank", aggfunc="sum")[list(MATRICES)]
    steps = by_matrix.index.to_numpy()
    areas = left.stackplot(
        steps,
        by_matrix.to_numpy().T,
        step="post",
        colors=[_MATRIX_COLOURS[name] for name in MATRICES],
        edgecolor="white",
        linewidth=0.4,
    )
    total = float(by_matrix.to_numpy().sum(axis=1).max())
    if budget:
        left.axhline(budget, color="black", linestyle="--", linewidth=1)
        left.annotate(
            f"budget {budget:.0f}", (steps[0], budget), (3, 3), textcoords="offset points", ha="left", va="bottom"
        )
    left.set_ylim(0, 1.12 * max(total, budget or 0))
    left.set_xlim(steps[0], steps[-1])
    left.set_xlabel("Step")
    left.set_ylabel("Total rank")
    left.set_title("By kind of matrix")
    left.legend(
        areas[::-1],
        [_MATH[name] for name in MATRICES][::-1],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        handlelength=1,
        handleheight=1,
        borderaxespad=0.4,
    )
    by_layer = data.pivot_table(index="layer", columns="step", values="rank", aggfunc="sum")
    edges = by_layer.columns.to_numpy(dtype=float)
    layers = by_layer.index.to_numpy()
    mesh = right.pcolormesh(
        edges, np.append(layers, layers[-1] + 1) - 0.5, by_layer.to_numpy()[:, :-1], cmap=style.MAP, rasterized=True
    )
    right.grid(visible=False)
    right.invert_yaxis()
    right.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    right.set_xlabel("Step")
    right.set_ylabel("Layer")
    right.set_title("By layer")
    bar = fig.colorbar(mesh, ax=right, label="Rank, sum over a layer's matrices")
    bar.outline.set_visible(False)
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    fig.suptitle(f"{note}; {_seeds(seeds)}", fontsize=8)
    return fig


def nothing(message: str) -> Figure:
    """A page that says why there is no figure."""
    fig = style.figure(style.SINGLE, 1.2)
    fig.text(0.5, 0.5, message, ha="center", va="center", wrap=True)
    return fig
