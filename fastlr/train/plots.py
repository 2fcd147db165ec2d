"""Pictures of a run: learning curve and parity of predictions with labels."""

from pathlib import Path

import numpy as np

from fastlr.kernels.files import replacing

from .history import read_rows

UNITS = {
    "energy": ("energy", "eV/atom", "meV/atom"),
    "forces": ("force", "eV/Å", "meV/Å"),
    "stress": ("stress", "eV/Å³", "meV/Å³"),
    "charges": ("charge", "e", "me"),
    "dipole": ("dipole", "e Å", "me Å"),
}


def plot_learning_curve(metrics: Path, picture: Path) -> None:
    """Losses and validation errors against epochs, both on log scales."""
    with _style():
        _draw_learning_curve(metrics, picture)


def plot_parity(pairs: dict[str, tuple[np.ndarray, np.ndarray]], picture: Path, title: str) -> None:
    """Predictions against labels, one panel a quantity."""
    with _style():
        _draw_parity(pairs, picture, title)


def _style():
    """Matplotlib's own style, whatever the caller has set, and that again afterwards."""
    import matplotlib

    default = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    return matplotlib.rc_context(default)


def _draw_learning_curve(metrics: Path, picture: Path) -> None:
    rows = read_rows(metrics)
    if not rows:
        return
    figure, (left, right) = _figure(1, 2, (12, 4.2))
    for key, label in (("train_loss", "training"), ("validation_loss", "validation (averaged weights)")):
        left.plot([row["epoch"] for row in rows], [row[key] for row in rows], label=label)
    best = min(rows, key=lambda row: row["validation_loss"])
    left.plot(
        best["epoch"], best["validation_loss"], "o", color="black", ms=5, label=f"best, epoch {best['epoch']:.0f}"
    )
    left.set(xlabel="epoch", ylabel="loss", yscale="log", title="loss")
    for name, (label, _, unit) in UNITS.items():
        key = next((key for key in rows[-1] if key.startswith(f"{name}_mae")), None)
        if key:
            chosen = [(row["epoch"], row[key]) for row in rows if row.get(key)]
            right.plot(*zip(*chosen, strict=True), label=f"{label}, {unit}: {rows[-1][key]:.3g}")
    right.set(xlabel="epoch", ylabel="mean absolute error", yscale="log", title="validation errors")
    left.legend(frameon=False, fontsize=9)
    right.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5), title="last epoch")
    for axes in (left, right):
        axes.grid(True, which="both", alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, picture)


def _draw_parity(pairs: dict[str, tuple[np.ndarray, np.ndarray]], picture: Path, title: str) -> None:
    names = [name for name in UNITS if name in pairs]
    if not names:
        return
    figure, panels = _figure(1, len(names), (4.1 * len(names), 4.3))
    for axes, name in zip(np.atleast_1d(panels), names, strict=True):
        label, unit, small = UNITS[name]
        reference, predicted = pairs[name]
        low, high = min(reference.min(), predicted.min()), max(reference.max(), predicted.max())
        margin = 0.04 * (high - low or 1.0)
        ends = [low - margin, high + margin]
        axes.plot(ends, ends, color="0.6", lw=1, zorder=0)
        step = max(1, len(reference) // 20000)
        axes.plot(reference[::step], predicted[::step], ".", ms=2.5, alpha=0.4, rasterized=True)
        mae = 1e3 * np.abs(predicted - reference).mean()
        if name == "energy":
            label = "energy less that of the composition"
        axes.set(xlabel=f"reference {label} ({unit})", ylabel=f"predicted {label} ({unit})", xlim=ends, ylim=ends)
        axes.set_title(f"MAE {mae:.3g} {small}", fontsize=10)
        axes.set_aspect("equal")
    figure.suptitle(title)
    _save(figure, picture)


def _figure(rows: int, columns: int, size: tuple[float, float]):
    # without pyplot, which would pick a window system and keep figures alive
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def _save(figure, picture: Path) -> None:
    with replacing(picture) as partial:
        figure.savefig(partial, dpi=140, format="png")
