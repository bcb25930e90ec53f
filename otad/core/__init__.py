# SPDX-License-Identifier: Apache-2.0
"""What is decided, and nothing else: no files, clock, network, randomness or logging in this package.

Read model (what is remembered), work (what should run now), events (what can happen), step (what it changes).
"""
