# SPDX-License-Identifier: Apache-2.0
"""Makes `broker`, which stands one directory up, importable however pytest was started."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
