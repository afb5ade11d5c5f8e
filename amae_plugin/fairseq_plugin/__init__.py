"""The thin layer between the method and fairseq: importing it registers all that a recipe can name."""

from amae_plugin.fairseq_plugin import classification, optim, pretraining, schedules  # noqa: F401
