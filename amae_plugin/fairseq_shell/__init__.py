"""The thin layer between the method and fairseq: importing it registers tasks, models, criterions and schedules."""

from amae_plugin.fairseq_shell import classification, criterions, models, optim, pretraining, schedules  # noqa: F401
