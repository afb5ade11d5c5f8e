"""Files of a probing: numbers, tables, curves over the layers, and a map of the clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from amae_plugin.evaluation.maps import LEAST_CLIPS, write_maps
from amae_plugin.evaluation.probe import Probing
from amae_plugin.evaluation.tables import SUFFIXES
from amae_plugin.files import write_json, writing
from amae_plugin.visual import plot_layers
from amae_plugin.visual.style import Width, save


def write(
    probing: Probing,
    folder: Path,
    formats: Sequence[str] = ("png",),
    width: Width = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> list[Path]:
    """Write ``probe.json``, ``.md``, ``.csv``, ``.tex``, a picture, and maps of the clips of ``test``.

    A map shows the features of the layer whose k-NN is best. Clips that have several labels, or are fewer than five,
    have none.

    Args:
        probing: the results.
        folder: folder to write to, which is made if it does not exist.
        formats: formats of the pictures, of those that matplotlib writes.
        width: width of the pictures.
        groups: groups of the clips that maps show, see :func:`write_maps`; the classes if None.

    Returns:
        Paths of the files.

    Raises:
        UserError: a file cannot be written.
    """
    stem = probing.checkpoint.stem
    title = f"{stem}: frozen features by layer, {probing.clips:,} clips"
    layers = probing.values, probing.weighted, probing.weights
    curves = plot_layers(*layers, ylabel=probing.measure, title=title, width=width)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "probe.json", probing.as_json)
        paths = [folder / "probe.json"]
        paths += [probing.table.write(folder / f"probe{suffix}") for suffix in SUFFIXES]
        paths += save(curves, folder / "probe", formats)
    if probing.labels is not None and probing.clips >= LEAST_CLIPS:
        layer = int(probing.values["k-NN"].argmax())
        groups = groups or {"class": probing.labels}
        paths += write_maps(probing.features[:, layer], groups, folder, f"{stem}: layer {layer}", formats, width)
    return paths
