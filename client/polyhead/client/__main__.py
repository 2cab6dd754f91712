"""`python -m polyhead.client` is the `polyhead` command."""

import sys

from polyhead.client.cli import main

sys.exit(main())
