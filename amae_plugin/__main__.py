"""``python -m amae_plugin``: the command ``amae``."""

import sys

from amae_plugin.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
