"""An encoder of any system with a classification head."""

from amae_plugin.models.classifier.config import ClassifierConfig
from amae_plugin.models.classifier.model import Classifier

__all__ = ["Classifier", "ClassifierConfig"]
