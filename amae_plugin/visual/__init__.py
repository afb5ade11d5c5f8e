"""Pictures: what a model filled in, how its loss fell, which clips it finds alike, and which classes it gets right.

Every function returns a matplotlib ``Figure`` of its own and touches no global state of matplotlib, so it works in a
training process without a display. Save it with ``figure.savefig("name.png")``.
"""

from amae_plugin.visual.accuracies import plot_comparison
from amae_plugin.visual.class_scores import plot_class_scores
from amae_plugin.visual.confusion import plot_confusion
from amae_plugin.visual.curves import plot_curves
from amae_plugin.visual.layers import plot_layers
from amae_plugin.visual.loss import plot_loss
from amae_plugin.visual.map import plot_map
from amae_plugin.visual.spectrograms import draw_clips, plot_reconstructions

__all__ = [
    "draw_clips",
    "plot_class_scores",
    "plot_comparison",
    "plot_confusion",
    "plot_curves",
    "plot_layers",
    "plot_loss",
    "plot_map",
    "plot_reconstructions",
]
