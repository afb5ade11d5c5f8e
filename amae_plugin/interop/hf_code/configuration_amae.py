"""Configuration of this folder's model, whose code is the package amae_plugin."""

try:
    from amae_plugin.interop import hf_model
except ImportError as error:
    raise ImportError(
        f"this model is computed by the package amae_plugin, which is not installed here, or not whole ({error}); in a "
        "checkout of its repository: pip install --no-deps -e . && pip install torchaudio soundfile wrapt"
    ) from error


class AmaeConfig(hf_model.AmaeConfig):
    """See :class:`amae_plugin.interop.hf_model.AmaeConfig`."""
