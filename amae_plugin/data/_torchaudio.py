"""torchaudio, imported in one place, so that a build that does not fit torch is explained and not only traced back."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from amae_plugin.errors import UserError

try:
    import torchaudio
    from torchaudio.compliance import kaldi
except (ImportError, OSError, RuntimeError) as error:
    _root: BaseException = error
    while _root.__cause__ is not None:
        _root = _root.__cause__
    _reason = next(iter(str(_root).splitlines()), type(_root).__name__)
    try:
        _pair = f"torchaudio {version('torchaudio')} does not load with torch {version('torch')} ({_reason})"
    except PackageNotFoundError:
        _pair = f"torchaudio cannot be imported ({_reason})"
    raise UserError(
        f"{_pair}: replace both by builds that fit each other, from the same index and without a label such as +cpu: "
        "pip install --force-reinstall -c constraints.txt torch torchaudio"
    ) from None

__all__ = ["kaldi", "torchaudio"]
