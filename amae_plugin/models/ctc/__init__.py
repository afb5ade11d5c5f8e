"""Recognition by CTC: an encoder of any system with an output for each step of time."""

from amae_plugin.models.ctc.config import CTCConfig
from amae_plugin.models.ctc.model import CTC, StepCount

__all__ = ["CTC", "CTCConfig", "StepCount"]
