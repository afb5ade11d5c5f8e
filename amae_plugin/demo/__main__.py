"""``python -m amae_plugin.demo``, which is what ``make demo`` runs."""

if __name__ == "__main__":
    import sys

    # Not at the top: every process that speaks words imports this module again, and must start fast.
    from amae_plugin.demo.run import main

    sys.exit(main())
