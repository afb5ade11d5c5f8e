"""The fairseq side of the package: importing it registers everything that a recipe can name."""

from amae_plugin.fairseq_plugin import classification, optim, pretraining, recognition, schedules  # noqa: F401
