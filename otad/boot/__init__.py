# SPDX-License-Identifier: Apache-2.0
"""Boot loaders: one `BootControl`, one file for each loader behind it."""
