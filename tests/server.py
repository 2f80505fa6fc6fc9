"""A server on this machine that answers as a test has written down."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append((self.path, self.headers["Range"], self.headers["If-Range"]))
        answers = self.server.script.get(self.path, [])
        (answers.pop(0) if answers else answer(b"", status=404))(self)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """`script` is path -> what it answers, in turn; `requests` is (path, Range, If-Range) of what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.requests, self.ended = {}, [], threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def running(self):
        thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.ended.set()
            self.shutdown()
            thread.join()
            self.server_close()


def answer(body, status=200, headers=None, length=True, cut=None, stall=False):
    """Send `body`; only its first `cut` bytes, after which the connection closes, or stalls."""

    def send(handler):
        handler.send_response(status)
        if length:
            handler.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[:cut])
        handler.wfile.flush()
        if stall:
            handler.server.ended.wait(20)

    return send


def file(body, etag='"1"', ranges=True, **how):
    """Answer as a server of files does: the range that is asked for, if it is of this version."""

    def send(handler):
        headers = {"ETag": etag} if etag else {}
        wanted, version = handler.headers["Range"], handler.headers["If-Range"]
        if not (ranges and wanted and version in (None, etag)):
            return answer(body, headers=headers, **how)(handler)
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            return answer(b"", status=416, headers={"Content-Range": f"bytes */{len(body)}"})(handler)
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return answer(body[start:], status=206, headers=headers, **how)(handler)

    return send


def redirect(address):
    return answer(b"", status=302, headers={"Location": address})
