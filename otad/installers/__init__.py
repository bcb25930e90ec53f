# SPDX-License-Identifier: Apache-2.0
"""What a module is made of, and how a package becomes it."""
