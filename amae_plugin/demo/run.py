"""The demo: speak a corpus, pretrain a tiny Audio-MAE on it, and measure how well that helps to tell its words apart.

A demo that runs again in the same folder repeats no step that is done.
"""

import argparse
import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from amae_plugin.corpora import speech_commands
from amae_plugin.data.labels import LABELS_NAME, write_names
from amae_plugin.data.manifest import Manifest
from amae_plugin.demo.page import Accuracy, Clip, next_steps, write_page
from amae_plugin.demo.settings import FINE_TUNING, FROM_SCRATCH, PRETRAINED, PRETRAINING, Demo
from amae_plugin.demo.words import make_words
from amae_plugin.errors import UserError
from amae_plugin.evaluation import probe_files
from amae_plugin.evaluation.classification import evaluate
from amae_plugin.evaluation.frozen import POOLING, embed_split
from amae_plugin.evaluation.maps import write_maps
from amae_plugin.evaluation.probe import probe
from amae_plugin.evaluation.report import write
from amae_plugin.evaluation.scoring import Options
from amae_plugin.files import write_json
from amae_plugin.inference.model import load_model
from amae_plugin.processes import run_program
from amae_plugin.recipe_files import recipe_folder
from amae_plugin.recipes import recipe_number
from amae_plugin.runs.training import Training, complete, read_losses
from amae_plugin.visual import plot_comparison
from amae_plugin.visual.style import save

_RESAMPLES = 1000
_BATCH = 64
_LAST_MAP = "map_voice.png"
"""Map that is written last."""


def run(demo: Demo) -> None:
    """Run all steps and print how long each took.

    Raises:
        UserError: a step failed.
    """
    start = time.monotonic()
    with _step(f"1. A corpus: {len(demo.words)} words, spoken by {len(demo.speakers)} voices, in {demo.corpus}"):
        make_words(demo.corpus, demo.clips_per_word, words=demo.words, speakers=demo.speakers)
    with _step(f"2. Manifests, with voices held out that training never hears, in {demo.manifests}"):
        written = [demo.manifests / f"{split}.tsv" for split in ("train", "valid", "test")]
        if not _is_newer(written, demo.corpus) or Path(Manifest.read(written[0]).root) != demo.corpus.absolute():
            print(speech_commands.build(demo.corpus, demo.manifests, "v2-35").summary)
            write_names(demo.manifests / LABELS_NAME, sorted(demo.words))  # and no others of Speech Commands
    updates = recipe_number(PRETRAINING, demo.config_dir, "optimization.max_update", demo.overrides)
    pretraining = demo.training("pretraining", PRETRAINING, "pretraining", updates, demo.overrides)
    with _step(f"3. Pretraining, by the recipe {demo.config_dir / PRETRAINING}.yaml, in {pretraining.folder}"):
        complete([pretraining])
        for name, points in read_losses(pretraining.log).items():
            if points:
                (first, first_loss), (last, last_loss) = points[0], points[-1]
                print(f"{name} loss: {first_loss:.3f} after {first:,.0f} updates, {last_loss:.3f} after {last:,.0f}")
    with _step(f"4. What its features know without any labels in pretraining, in {demo.probe}"):
        _probe(demo, pretraining)
        print((demo.probe / "probe.md").read_text(encoding="utf-8"), end="")
    against = "the pretrained encoder against the same network from scratch, with the same number of updates"
    with _step(f"5. Telling the words apart, by the recipe {demo.config_dir / FINE_TUNING}.yaml: {against}"):
        fine_tunings = demo.fine_tunings(pretraining.checkpoint)
        complete(list(fine_tunings.values()))
        accuracies = _evaluate(demo, fine_tunings)
        clips = len(Manifest.read(written[-1]))
        print(f"accuracy on {clips:,} clips of unheard voices, with 95% intervals")
        print(f"{'':26}{PRETRAINED:>24}{FROM_SCRATCH:>24}")
        for labels, row in accuracies.items():
            print(f"{labels:26}{row[PRETRAINED]!s:>24}{row[FROM_SCRATCH]!s:>24}")
    best = fine_tunings[max(demo.fractions), PRETRAINED]
    with _step(f"6. A page to look at and listen to, {demo.page}"):
        _map(demo, best)
        sources = [demo.probe / _LAST_MAP, demo.accuracies, demo.maps / _LAST_MAP]  # all of them after the trainings
        files = [demo.root / "loss.png", demo.root / "reconstruction.png", demo.page]
        if not all(_is_newer(files, source) for source in sources):
            write_page(demo, pretraining, best, accuracies)
    steps = "\n".join(f"\n{purpose}:\n{command}" for purpose, command in next_steps(demo))
    print(f"""
Done in {time.monotonic() - start:,.0f} seconds. Open {demo.page} in a browser. It shows, among others:
  {demo.root / "loss.png"}            the loss of pretraining
  {demo.root / "reconstruction.png"}  held-out clips: as they are, as the encoder saw them, as the model filled them in
  {demo.root / "accuracy.png"}        pretrained against from scratch
  {demo.probe}  frozen features, layer by layer, and a map of them
  {best.folder / "evaluation"}  which words were mistaken for which
  {pretraining.checkpoint}  the pretrained model
  {best.checkpoint}  the classifier
  {shlex.join(["tensorboard", "--logdir", str(demo.root)])}  the same and more, if TensorBoard is installed

Next, the same on your own recordings, of any length and format.
{steps}""")


def _probe(demo: Demo, pretraining: Training) -> None:
    """Probe the frozen features of the pretrained encoder, and map them by word and by voice."""
    if _is_newer([demo.probe / _LAST_MAP], pretraining.checkpoint):
        return
    probing = probe(load_model(pretraining.checkpoint, batch_size=_BATCH, pooling=POOLING), demo.manifests)
    probe_files.write(probing, demo.probe, groups=_groups(demo))


def _map(demo: Demo, training: Training) -> None:
    """Map the features of a classifier by word and by voice."""
    if _is_newer([demo.maps / _LAST_MAP], training.checkpoint):
        return
    features = embed_split(load_model(training.checkpoint, batch_size=_BATCH), demo.manifests, "test").features
    write_maps(features, _groups(demo), demo.maps, f"{training.description}: last layer")


def _groups(demo: Demo) -> dict[str, list[str]]:
    """Return the word and the voice of each clip of the test split."""
    clips = Clip.of_split(demo, "test")
    return {"word": [clip.word for clip in clips], "voice": [clip.voice for clip in clips]}


def _evaluate(demo: Demo, fine_tunings: Mapping[tuple[float, str], Training]) -> dict[str, dict[str, Accuracy]]:
    """Measure the accuracies on the voices of the test split, by labels and start, and draw ``accuracy.png``."""
    picture = demo.root / "accuracy.png"
    if all(_is_newer([demo.accuracies, picture], training.checkpoint) for training in fine_tunings.values()):
        found = json.loads(demo.accuracies.read_text())
        return {labels: {start: Accuracy(*values) for start, values in row.items()} for labels, row in found.items()}
    accuracies: dict[str, dict[str, Accuracy]] = {}
    for (fraction, start), training in fine_tunings.items():
        result = evaluate(training.checkpoint, demo.manifests, "test", Options(progress=False, resamples=_RESAMPLES))
        write(result, training.folder / "evaluation" / "test")
        accuracy = Accuracy(result.headline["accuracy"], *result.intervals["accuracy"])
        accuracies.setdefault(f"{fraction:.0%} of the labels", {})[start] = accuracy
    title = f"{len(demo.words)} words, voices never heard in training"
    values = {labels: {start: each.value for start, each in row.items()} for labels, row in accuracies.items()}
    save(plot_comparison(values, ylabel="accuracy", title=title, chance=1 / len(demo.words)), picture)
    write_json(demo.accuracies, accuracies)
    return accuracies


@contextmanager
def _step(title: str) -> Iterator[None]:
    print(f"\n{title}", flush=True)
    start = time.monotonic()
    yield
    print(f"-- {time.monotonic() - start:.0f} s", flush=True)


def _is_newer(files: Sequence[Path], source: Path) -> bool:
    return all(file.exists() and file.stat().st_mtime >= source.stat().st_mtime for file in files)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m amae_plugin.demo", description="Pretrain a tiny Audio-MAE.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything (%(default)s)")
    parser.add_argument("--config-dir", type=Path, default=recipe_folder(), help="folder of the recipes (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the trainings; the words stay (%(default)s)")
    args = parser.parse_args(argv)

    def work() -> None:
        if not (args.config_dir / f"{PRETRAINING}.yaml").is_file():
            raise UserError(f"{args.config_dir} holds no {PRETRAINING}.yaml: run this from the root of the repository")
        run(Demo(args.out, args.config_dir, seed=args.seed))

    return run_program("demo", work, "the same command continues from here")
