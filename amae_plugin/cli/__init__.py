"""The ``amae`` command line: one module a subcommand."""
