"""The page in the folder of an exported model: what it is, what it takes, how to load it."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from amae_plugin.checkpoints import Checkpoint
from amae_plugin.data.labels import LABELS_NAME
from amae_plugin.inspection import describe, summary
from amae_plugin.interop.formats import Format
from amae_plugin.models.base import Model

FILE = "README.md"
_PROBABILITIES = {"bce": "torch.sigmoid(logits)", "cross_entropy": "torch.softmax(logits, dim=1)"}
_MARK = "Written by `amae export`"


def write(checkpoint: Checkpoint, model: Model, folder: Path, title: str, forms: Sequence[Format]) -> None:
    """Write the page.

    Args:
        checkpoint: exported checkpoint.
        model: model of the checkpoint.
        folder: folder of the exported files.
        title: title of the page.
        forms: written formats.
    """
    facts = describe(checkpoint)
    # Others have no use for the folders of the machine of the training.
    facts["path"] = checkpoint.path.name
    facts["data"] = Path(facts["data"]).name if facts["data"] else None
    facts["save_dir"] = Path(facts["save_dir"]).parent.name if facts["save_dir"] else None
    loader = jinja2.PackageLoader(__package__, ".")
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    page = environment.get_template("model_card.md.jinja").render(
        title=title,
        mark=_MARK,
        facts=facts,
        summary=summary(facts),
        input=checkpoint.input,
        labels=LABELS_NAME,
        probabilities=_PROBABILITIES.get(facts["loss"]),
        prefix=model.encoder.num_prefix_tokens,
        loading={form.library: form.loading(title) for form in forms},
        library=forms[0].library,
        takes_log_mel=any(form.takes_log_mel for form in forms),
    )
    (folder / FILE).write_text(page, encoding="utf-8")


def is_own(path: Path) -> bool:
    """Tell whether a page was written here."""
    return _MARK in path.read_text(encoding="utf-8", errors="replace")
