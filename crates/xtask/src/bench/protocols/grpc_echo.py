# A gRPC service that sends back what it gets on a stream, and a client of it. No generated code: messages are bytes.
#   grpc_echo.py serve            listens on $PORT
#   grpc_echo.py ask TARGET SECONDS STREAMS PER_SECOND [ROOTS]     with TLS if there are roots to trust
import asyncio, os, signal, sys
import grpc
from paced import run

METHOD = "/bench.Echo/Stream"


async def serve():
    async def stream(messages, context):
        async for message in messages:
            yield message

    handler = grpc.stream_stream_rpc_method_handler(stream)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Echo", {"Stream": handler}),)
    )
    server.add_insecure_port(os.environ.get("LISTEN", "127.0.0.1") + ":" + os.environ["PORT"])
    await server.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await server.stop(grace=5)


def channel_to(target, roots=None):
    if roots is None:
        return grpc.aio.insecure_channel(target)
    with open(roots, "rb") as file:
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(file.read()))


async def session(target, client):
    """One stream on a channel of its own."""
    async with channel_to(*target) as channel:
        stream = channel.stream_stream(METHOD)()

        async def ask(message):
            await stream.write(message)
            return await stream.read()

        await client.session(ask)
        await stream.done_writing()
        if await stream.read() is not grpc.aio.EOF:
            raise OSError("more came back than was sent")


if sys.argv[1] == "serve":
    asyncio.run(serve())
else:
    run(session, sys.argv[2:])
