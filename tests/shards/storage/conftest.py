"""Real neighbours on the loopback: a certificate authority and a proxy."""

import base64
import socket
import ssl
import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import trustme


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """An authority of one's own: .bundle, the file of its certificate, and .tls(host), a server's context."""
    made = trustme.CA()
    bundle = tmp_path_factory.mktemp("authority") / "bundle.pem"
    made.cert_pem.write_to_path(bundle)

    def tls(host):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.issue_cert(host).configure_cert(context)
        return context

    return SimpleNamespace(bundle=bundle, tls=tls)


class _Proxy(BaseHTTPRequestHandler):
    """Forwards GET and CONNECT, notes whither, and asks for `server.login` if there is one."""

    def log_message(self, *words):
        pass

    def _may_pass(self):
        self.server.asked.append(f"{self.command} {self.path}")
        wanted = self.server.login and "Basic " + base64.b64encode(self.server.login.encode()).decode()
        if not wanted or self.headers.get("Proxy-Authorization") == wanted:
            return True
        self.send_response(407)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def do_GET(self):
        if not self._may_pass():
            return
        parts = urlsplit(self.path)
        connection = HTTPConnection(parts.netloc)
        connection.request("GET", parts.path, headers={"Range": self.headers["Range"]})
        answer = connection.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name in ("Content-Range", "Content-Length"):
            self.send_header(name, answer.headers[name])
        self.end_headers()
        self.wfile.write(body)
        connection.close()

    def do_CONNECT(self):
        if not self._may_pass():
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as there:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=self._pump, args=(there, self.connection))
            back.start()
            self._pump(self.connection, there)
            back.join()
        self.close_connection = True

    @staticmethod
    def _pump(source, target):
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


@pytest.fixture
def proxy():
    """A running proxy: .url, .place (host:port), .asked ("GET URL" or "CONNECT HOST:PORT"), .login."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    server.daemon_threads, server.block_on_close = True, False
    server.asked, server.login = [], ""
    server.place = f"127.0.0.1:{server.server_port}"
    server.url = f"http://{server.place}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
