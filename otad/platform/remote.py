# SPDX-License-Identifier: Apache-2.0
"""Any MQTT broker (mosquitto, say) as the stand-in's broker: the platform is one of its clients.

The only file of the platform that knows aiomqtt.

What the other broker then decides: who may connect, on which topics, and that devices have to SUBSCRIBE. Who is online
is inferred: each inform counts as coming online, because devices inform when they have connected; any other message
does where the device was not known to be. A device that leaves is not noticed.
"""

import asyncio
import contextlib
import logging
import ssl
from typing import Final

import aiomqtt

from otad.platform.broker import Cloud
from otad.platform.credentials import Identity
from otad.platform.wire import identity_in

log = logging.getLogger(__name__)

FILTERS: Final = (
    "/ota/device/inform/+/+",
    "/ota/device/progress/+/+",
    "/ota/device/request/+/+",
    "/sys/+/+/thing/ota/firmware/get",
    "/sys/+/+/thing/file/download",
    "/ext/ntp/+/+/request",
)
RECONNECT_S: Final = 0.2

Message = tuple[str, bytes, int]


class RemoteBroker:
    """A client of the broker at `host` and `port`. It reconnects by itself; what is sent meanwhile is lost."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        username: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._username = username
        self._password = password
        self._tls = tls
        self._outgoing: asyncio.Queue[Message] | None = None
        self._seen: set[Identity] = set()
        self._client: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return self._port

    async def start(self, cloud: Cloud) -> None:
        """Returns once the broker has acknowledged the subscriptions; raises OSError if it cannot be reached."""
        subscribed = asyncio.get_running_loop().create_future()
        self._client = asyncio.create_task(self._stay_connected(cloud, subscribed), name="remote broker")
        try:
            await subscribed
        except aiomqtt.MqttError as error:
            await self.stop()
            raise ConnectionError(f"broker {self._host}:{self._port}: {error}") from error

    async def stop(self) -> None:
        if self._client is not None:
            self._client.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._client
            self._client = None

    def send(self, identity: Identity, topic: str, payload: bytes, qos: int = 0) -> None:
        if self._outgoing is not None:
            self._outgoing.put_nowait((topic, payload, qos))

    def kick(self, identity: Identity) -> None:
        raise NotImplementedError("a client of a broker cannot close another client's connection")

    async def _stay_connected(self, cloud: Cloud, subscribed: "asyncio.Future[None]") -> None:
        while True:
            try:
                async with aiomqtt.Client(
                    self._host,
                    self._port,
                    username=self._username,
                    password=self._password,
                    tls_context=self._tls,
                ) as client:
                    await client.subscribe([(text, 1) for text in FILTERS])
                    if not subscribed.done():
                        subscribed.set_result(None)
                    await self._exchange(cloud, client)
            except aiomqtt.MqttError as error:
                if not subscribed.done():
                    subscribed.set_exception(error)
                    return
                log.info("broker %s:%s: %s", self._host, self._port, error)
            self._forget_all(cloud)
            await asyncio.sleep(RECONNECT_S)

    async def _exchange(self, cloud: Cloud, client: aiomqtt.Client) -> None:
        self._outgoing = outgoing = asyncio.Queue[Message]()
        sender = asyncio.create_task(_send_all(client, outgoing), name="remote broker sender")
        try:
            async for message in client.messages:
                self._received(cloud, str(message.topic), message.payload)
        finally:
            self._outgoing = None
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, aiomqtt.MqttError):
                await sender

    def _received(self, cloud: Cloud, topic: str, payload: object) -> None:
        identity = identity_in(topic)
        if identity is None or not isinstance(payload, bytes):
            return
        if not cloud.knows(identity):
            cloud.refused(str(identity), 0, "no such device")
            return
        # The message first: a target version informed ends the job before it could be pushed again.
        cloud.received(identity, topic, payload)
        if identity not in self._seen or topic.startswith("/ota/device/inform/"):
            self._seen.add(identity)
            cloud.connected(identity)

    def _forget_all(self, cloud: Cloud) -> None:
        for identity in self._seen:
            cloud.disconnected(identity, "the broker went away")
        self._seen.clear()


async def _send_all(client: aiomqtt.Client, outgoing: "asyncio.Queue[Message]") -> None:
    while True:
        topic, payload, qos = await outgoing.get()
        await client.publish(topic, payload, qos=qos)
