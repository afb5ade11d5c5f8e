"""torchaudio, imported in one place: the error explains a build that does not fit torch."""

from importlib.metadata import PackageNotFoundError, version

from amae_plugin.errors import UserError

try:
    import torchaudio
    from torchaudio.compliance import kaldi
except (ImportError, OSError, RuntimeError) as error:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = next(iter(str(cause).splitlines()), type(cause).__name__)
    try:
        problem = f"torchaudio {version('torchaudio')} does not load with torch {version('torch')} ({reason})"
    except PackageNotFoundError:
        problem = f"torchaudio cannot be imported ({reason})"
    raise UserError(
        f"{problem}: replace both by builds that fit each other, from the same index and without a label such as +cpu: "
        "pip install --force-reinstall -c constraints.txt torch torchaudio"
    ) from None

__all__ = ["kaldi", "torchaudio"]
