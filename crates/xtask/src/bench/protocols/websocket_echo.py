# A WebSocket service that sends back what it gets, and a client of it.
#   websocket_echo.py serve       listens on $PORT
#   websocket_echo.py ask TARGET SECONDS CONNECTIONS PER_SECOND [ROOTS]     with TLS if there are roots to trust
import asyncio, os, signal, ssl, sys
import websockets
from paced import run


async def serve():
    async def echo(connection):
        try:
            async for message in connection:
                await connection.send(message)
        except websockets.ConnectionClosed:
            pass

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with websockets.serve(echo, os.environ.get("LISTEN", "127.0.0.1"), int(os.environ["PORT"])):
        await ended.wait()


def connect_to(target, roots=None):
    if roots is None:
        return websockets.connect("ws://" + target, open_timeout=5)
    context = ssl.create_default_context(cafile=roots)
    return websockets.connect("wss://" + target, open_timeout=5, ssl=context)


async def session(target, client):
    """One connection."""
    async with connect_to(*target) as connection:

        async def ask(message):
            await connection.send(message)
            return await connection.recv()

        await client.session(ask)


if sys.argv[1] == "serve":
    asyncio.run(serve())
else:
    run(session, sys.argv[2:])
