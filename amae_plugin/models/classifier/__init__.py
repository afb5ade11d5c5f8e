"""Classification: an encoder of any system with a linear head."""

from amae_plugin.models.classifier.config import ClassifierConfig
from amae_plugin.models.classifier.model import Classifier

__all__ = ["Classifier", "ClassifierConfig"]
