# SPDX-License-Identifier: Apache-2.0
"""`python -m otad`."""

import sys

from otad.cli import main

if __name__ == "__main__":
    sys.exit(main())
