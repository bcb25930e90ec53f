# SPDX-License-Identifier: Apache-2.0
"""The platform's language: topics, payloads, credentials and the MQTT session. Wire words stay in here."""
