# Paced clients of a protocol with sessions (streams, connections): a second of messages, then the next session.
#
# Prints JSON: messages answered; `cut`, sessions that broke off; `failed`, sessions without any answer right after one
# that had broken off: the client had asked anew, and that must work at once.
import asyncio, json, sys, time

MESSAGES = 50  # of one session
PATIENCE = 5  # seconds for an answer


class Client:
    def __init__(self, interval):
        self.interval = interval
        self.requests = self.failed = self.cut = 0
        self.why = ""

    async def session(self, ask):
        """Sends the messages of one session; raises if it breaks off."""
        due = time.monotonic()
        for number in range(MESSAGES):
            await asyncio.sleep(max(0, due - time.monotonic()))
            due += self.interval
            message = b"message %d" % number
            answer = await asyncio.wait_for(ask(message), PATIENCE)
            if answer != message:
                raise OSError(f"{answer!r} came back")
            self.requests += 1

    async def sessions(self, session, target, end):
        was_cut = False
        while time.monotonic() < end:
            before = self.requests
            try:
                await session(target, self)
                was_cut = False
            except Exception as error:
                self.why = repr(error)
                if was_cut and self.requests == before:
                    self.failed += 1
                    await asyncio.sleep(self.interval)
                else:
                    self.cut += 1
                was_cut = True


async def all_clients(session, target, seconds, number, per_second):
    clients = [Client(number / per_second) for _ in range(number)]
    end = time.monotonic() + seconds

    async def begin(index, client):
        # So that the sessions do not all begin at the same moment.
        await asyncio.sleep(index * client.interval * MESSAGES / number)
        await client.sessions(session, target, end)

    await asyncio.gather(*(begin(*item) for item in enumerate(clients)))
    return clients


def run(session, arguments):
    target, seconds, number, per_second, *roots = arguments
    clients = asyncio.run(
        all_clients(session, (target, *roots), float(seconds), int(number), float(per_second))
    )
    for why in {client.why for client in clients if client.why}:
        print(why, file=sys.stderr)
    total = {key: sum(getattr(client, key) for client in clients) for key in ("requests", "failed", "cut")}
    print(json.dumps(total))
