"""Calls of gRPC through the proxy, by the official library on both sides and without generated code.

Prints the port of its service; then reads a line with the addresses of the proxy: of that service, of the same with a
limit of half a second for each request, of a service without instances.
"""

import sys
import threading
from concurrent import futures

import grpc

LARGE = 4 * 1024 * 1024
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
cancelled = threading.Event()


def unary(request, context):
    sent = [(key, value) for key, value in context.invocation_metadata() if key.startswith("x-")]
    context.send_initial_metadata(sent + [("x-begin-bin", b"\x00\xff")])
    context.set_trailing_metadata(sent + [("x-end-bin", b"\xff\x00")])
    return request


def hang(request, context):
    ended = threading.Event()
    context.add_callback(ended.set)
    ended.wait()
    cancelled.set()
    return b""


def split(request, context):
    for n in range(int(request)):
        yield b"part %d" % n


def join(requests, context):
    return b"%d" % sum(len(request) for request in requests)


def chat(requests, context):
    for request in requests:
        yield request.upper()


def fail(request, context):
    context.set_trailing_metadata([("x-why", "so")])
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "zu größ für 100 %")


def serve():
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Hang": grpc.unary_unary_rpc_method_handler(hang),
        "Split": grpc.unary_stream_rpc_method_handler(split),
        "Join": grpc.stream_unary_rpc_method_handler(join),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
    }
    server = grpc.server(futures.ThreadPoolExecutor(32), options=UNLIMITED)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def status_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call succeeded")


def check_unary(channel):
    method = channel.unary_unary("/test.Service/Unary")
    for size in (0, 1, 100_000, LARGE):
        message = bytes(n % 251 for n in range(251)) * (size // 251) + b"x" * (size % 251)
        metadata = [("x-text", "a, b"), ("x-twice", "1"), ("x-twice", "2"), ("x-some-bin", b"\x01\x00")]
        answer, call = method.with_call(message, metadata=metadata, timeout=30)
        assert answer == message, size
        sent = [(key, value) for key, value in metadata]
        begin = [pair for pair in call.initial_metadata() if pair[0].startswith("x-")]
        end = [pair for pair in call.trailing_metadata() if pair[0].startswith("x-")]
        for pair in sent:
            assert tuple(pair) in map(tuple, begin), (pair, begin)
            assert tuple(pair) in map(tuple, end), (pair, end)
        assert ("x-begin-bin", b"\x00\xff") in map(tuple, begin)
        assert ("x-end-bin", b"\xff\x00") in map(tuple, end)


def check_streams(channel):
    parts = list(channel.unary_stream("/test.Service/Split")(b"100", timeout=30))
    assert parts == [b"part %d" % n for n in range(100)]
    total = channel.stream_unary("/test.Service/Join")((b"x" * n for n in range(200)), timeout=30)
    assert total == b"%d" % sum(range(200))
    total = channel.stream_unary("/test.Service/Join")(iter([b"x" * LARGE] * 3), timeout=30)
    assert total == b"%d" % (3 * LARGE)
    # Strictly in turn: each message waits for the answer to the one before.
    answered = threading.Semaphore(1)

    def messages():
        for n in range(50):
            answered.acquire()
            yield b"message %d" % n

    n = 0
    for answer in channel.stream_stream("/test.Service/Chat")(messages(), timeout=30):
        assert answer == b"MESSAGE %d" % n
        n += 1
        answered.release()
    assert n == 50


def check_errors(channel):
    error = status_of(lambda: channel.unary_unary("/test.Service/Fail")(b"", timeout=30))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "zu größ für 100 %", error.details()
    assert ("x-why", "so") in map(tuple, error.trailing_metadata())
    error = status_of(lambda: channel.unary_unary("/test.Service/None")(b"", timeout=30))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error


def check_cancellation(channel):
    cancelled.clear()
    call = channel.unary_unary("/test.Service/Hang").future(b"")
    assert not cancelled.wait(0.1)
    call.cancel()
    assert cancelled.wait(10), "the service does not hear of it"
    # Also of a client whose time is over.
    cancelled.clear()
    error = status_of(lambda: channel.unary_unary("/test.Service/Hang")(b"", timeout=0.2))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    assert cancelled.wait(10), "the service does not hear of it"


def check_own_answers(limited, empty):
    cancelled.clear()
    error = status_of(lambda: limited.unary_unary("/test.Service/Hang")(b"", timeout=30))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    assert "did not answer in time" in error.details(), error.details()
    assert cancelled.wait(10), "the service does not hear of it"
    error = status_of(lambda: empty.unary_unary("/test.Service/Unary")(b"", timeout=30))
    assert error.code() == grpc.StatusCode.UNAVAILABLE, error
    assert "no running instance" in error.details(), error.details()
    messages = iter([b"x" * 1000] * 100)
    error = status_of(lambda: empty.stream_unary("/test.Service/Join")(messages, timeout=30))
    assert error.code() == grpc.StatusCode.UNAVAILABLE, error


def check_many(channel):
    method = channel.unary_unary("/test.Service/Unary")
    calls = [method.future(b"%d" % n, timeout=30) for n in range(300)]
    assert [call.result() for call in calls] == [b"%d" % n for n in range(300)]


def main():
    server, port = serve()
    print(port, flush=True)
    channels = [grpc.insecure_channel(to, options=UNLIMITED) for to in sys.stdin.readline().split()]
    channel, limited, empty = channels
    check_unary(channel)
    check_streams(channel)
    check_errors(channel)
    check_cancellation(channel)
    check_own_answers(limited, empty)
    check_many(channel)
    for channel in channels:
        channel.close()
    server.stop(0)


main()
