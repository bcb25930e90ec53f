# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the cloud: for the demo, for tests, and for a user at their desk.

It plays the platform's side of an upgrade as faithfully as is known, to otad and to clients nobody here wrote, and it
shares no code with otad's device side: an error in one must show in the other. How the parts fit:

    Platform ---- Service ---- Jobs         the rules about batches and jobs; pure (jobs)
       |             |  `----- wire         topics and JSON, read leniently, written as captured (wire)
       |             |
       |          EmbeddedBroker            MQTT 3.1.1 within this process (broker, mqtt, credentials)
       |          or RemoteBroker           any other broker, as one of its clients (remote)
       |
       |-------- FileServer                 packages under signed URLs, with Range (files)
       |-------- Store                      what survives a restart (store)
       |-------- Authority                  certificates of its own, for TLS and X.509 devices (ca)
       |-------- Faults                     switches to misbehave, read at each turn (faults)
       `-------- EventLog                   all that happened; wakes whoever waits (events)

    otad platform serve = Platform + Admin  a unix socket for the other commands (admin, commands, table, cli)

    from otad.platform.platform import Platform

This package imports nothing by itself, so that `otad` can know of its commands without loading an HTTP server.

A message goes: broker > Service.received > Jobs > effects (`Changed`, `Push`) > Service > broker. Everything runs on
one event loop and nothing in between waits, so each message is dealt with as a whole.
"""
