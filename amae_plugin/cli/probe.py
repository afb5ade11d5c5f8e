"""Measure frozen features: a k-NN and a linear probe of each layer of an encoder, and a probe that weighs the layers.

Takes a pretraining checkpoint or a classifier's and a labelled corpus. Features are means over whole clips; probes are
fitted on train, choose their penalty on valid, and are measured on test. With several labels a clip, the measure is
mAP; if the folder has trials.txt, each layer's equal error rate is measured as well. Writes probe.json, .md, .csv, .tex
and a picture.
"""

import argparse
from pathlib import Path

from amae_plugin.cli.arguments import add_formats
from amae_plugin.cli.clips import add_model, results_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_model(parser)
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="take the manifests and labels of this folder: train, valid, test",
    )
    add("--out", type=Path, metavar="DIR", help="write the results there (default: probe in the folder of the run)")
    add_formats(parser)


def run(args: argparse.Namespace) -> None:
    """Print the table, and write the results."""
    from amae_plugin.evaluation.probe import probe
    from amae_plugin.evaluation.tables import SUFFIXES
    from amae_plugin.files import try_place, write_json, writing
    from amae_plugin.inference.model import load_model
    from amae_plugin.visual import plot_layers
    from amae_plugin.visual.style import save

    out = args.out or results_folder(args.checkpoint) / "probe"
    with writing(out):  # before work that would be lost if its results could not be written
        try_place(out / "probe.json")
    model = load_model(args.checkpoint, args.device, args.batch_size)
    probing = probe(model, args.data, args.workers)
    print(probing.table.text())
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "probe.json", probing.as_json)
        for suffix in SUFFIXES:
            probing.table.write(out / f"probe{suffix}")
        title = f"{args.checkpoint.stem}: frozen features by layer, {probing.clips:,} clips"
        figure = plot_layers(probing.values, probing.weighted, probing.weights, ylabel=probing.measure, title=title)
        save(figure, out / "probe", args.formats)
    print(f"\nprobe.json, .md, .csv, .tex and the picture are in {out}")
