"""Measure frozen features: a k-NN and a linear probe of each layer of an encoder, and a probe that weighs the layers.

Takes a pretraining checkpoint or a classifier's and a labelled corpus. Features are means over whole clips; probes are
fitted on train, choose their penalty on valid, and are measured on test. Features of a small encoder tell much more
with --pooling time_concat, which keeps the bands of a time step side by side. With several labels a clip, the measure
is mAP; if the folder has trials.txt, each layer's equal error rate is measured as well. Writes probe.json, .md, .csv,
.tex and a picture; if clips have one label each, also a map, on which clips with similar features are neighbours.
"""

import argparse
from pathlib import Path

from amae_plugin.cli.arguments import add_formats
from amae_plugin.cli.clips import add_model, add_pooling, results_folder


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
    add_pooling(parser)
    add_formats(parser)


def run(args: argparse.Namespace) -> None:
    """Print the table, and write the results."""
    from amae_plugin.evaluation import probe_files
    from amae_plugin.evaluation.probe import probe
    from amae_plugin.files import try_place, writing
    from amae_plugin.inference.model import load_model

    out = args.out or results_folder(args.checkpoint) / "probe"
    with writing(out):  # before work that would be lost if its results could not be written
        try_place(out / "probe.json")
    model = load_model(args.checkpoint, args.device, args.batch_size, pooling=args.pooling)
    probing = probe(model, args.data, args.workers)
    print(probing.table.text())
    written = probe_files.write(probing, out, args.formats, args.width)
    print(f"\n{', '.join(path.name for path in written)} are in {out}")
