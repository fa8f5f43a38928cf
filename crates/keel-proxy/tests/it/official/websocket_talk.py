"""WebSockets through the proxy, by a library on both sides.

Prints the port of its service; then reads a line with the address of the proxy.
"""

import asyncio
import sys

import websockets

closed = asyncio.Queue()


async def service(socket, path):
    if path == "/bye":
        await socket.send("before the end")
        await socket.close(4002, "that is all")
    else:
        try:
            async for message in socket:
                await socket.send(message)
        except websockets.ConnectionClosed:
            pass
    await socket.wait_closed()
    await closed.put((socket.close_code, socket.close_reason))


async def talk(address):
    options = {"max_size": None, "ping_interval": None, "close_timeout": 10}
    async with websockets.connect(f"ws://{address}/chat", subprotocols=["chat"], **options) as socket:
        assert socket.subprotocol == "chat"
        for message in ["", "text: größe €", b"", bytes(range(256)), "x" * 126, b"x" * 65_536]:
            await socket.send(message)
            assert await socket.recv() == message
        large = bytes(n % 251 for n in range(251)) * 20_000
        await socket.send(large)
        assert await socket.recv() == large
        # One message in many frames.
        await socket.send(str(n) for n in range(1000))
        assert await socket.recv() == "".join(str(n) for n in range(1000))
        for n in range(20):
            pong = await socket.ping(b"ping %d" % n)
            await asyncio.wait_for(pong, 10)
        await socket.close(4001, "enough")
        assert await asyncio.wait_for(closed.get(), 10) == (4001, "enough")
    async with websockets.connect(f"ws://{address}/bye", **options) as socket:
        assert await socket.recv() == "before the end"
        await socket.wait_closed()
        assert (socket.close_code, socket.close_reason) == (4002, "that is all")
        assert await asyncio.wait_for(closed.get(), 10) == (4002, "that is all")
    # One that breaks off: the other side sees an end without a close.
    socket = await websockets.connect(f"ws://{address}/chat", **options)
    await socket.send("still there")
    assert await socket.recv() == "still there"
    socket.transport.abort()
    assert (await asyncio.wait_for(closed.get(), 10))[0] == 1006


async def many(address):
    async def one(n):
        async with websockets.connect(f"ws://{address}/chat") as socket:
            for turn in range(20):
                await socket.send(f"{n} {turn}")
                assert await socket.recv() == f"{n} {turn}"

    await asyncio.gather(*(one(n) for n in range(30)))


async def main():
    options = {"max_size": None, "ping_interval": None, "subprotocols": ["chat"]}
    async with websockets.serve(service, "127.0.0.1", 0, **options) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        address = (await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)).strip()
        await talk(address)
        await many(address)


asyncio.run(main())
