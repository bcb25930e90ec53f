# SPDX-License-Identifier: Apache-2.0
"""otad, the update daemon for embedded-Linux gateways."""

__version__ = "0.1.0"
