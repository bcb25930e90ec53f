# SPDX-License-Identifier: Apache-2.0
"""How a package reaches its place: fetch, write, check. aiohttp is imported here and nowhere else on the device."""
