# SPDX-License-Identifier: Apache-2.0
"""The local socket, over which people and programs ask the daemon and give it orders."""
