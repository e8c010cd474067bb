"""The double's HTTP side: which call is which method."""

from __future__ import annotations

import json
import traceback
import urllib.parse
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from tests.doubles.google.problems import Problem

if TYPE_CHECKING:
    from tests.doubles.google.vertex import VertexDouble

_RESOURCE = r"projects/[^/]+/locations/[^/]+"
# Google's REST client polls operations below /ui/, the first of the paths that the service gives them.
ROUTES = (
    ("create_endpoint", "POST", rf"/v1/({_RESOURCE})/endpoints", "create_endpoint"),
    ("get_endpoint", "GET", rf"/v1/{_RESOURCE}/endpoints/([^/:]+)", "get_endpoint"),
    ("update_endpoint", "PATCH", rf"/v1/{_RESOURCE}/endpoints/([^/:]+)", "update_endpoint"),
    ("deploy_model", "POST", rf"/v1/{_RESOURCE}/endpoints/([^/:]+):deployModel", "deploy_model"),
    ("undeploy_model", "POST", rf"/v1/{_RESOURCE}/endpoints/([^/:]+):undeployModel", "undeploy_model"),
    ("get_operation", "GET", rf"/(?:v1|ui)/({_RESOURCE}/.+/operations/\d+)", "get_operation"),
    ("upload_model", "POST", rf"/v1/({_RESOURCE})/models:upload", "upload_model"),
    ("get_model", "GET", rf"/v1/({_RESOURCE}/models/[^/:]+)", "get_model"),
    ("invoke", "POST", rf"/v1/{_RESOURCE}/endpoints/([^/]+)/deployedModels/(\d+)/invoke(/.+)", "invoke"),
    ("get_object", "GET", r"/storage/v1/b/([^/]+)/o/(.+)", "get_object"),
    ("put_object", "POST", r"/upload/storage/v1/b/([^/]+)/o", "put_object"),
    ("put_rest", "PUT", r"/upload/storage/v1/b/([^/]+)/o", "put_rest"),
    ("time_series", "GET", r"/v3/projects/([^/]+)/timeSeries", "time_series"),
    ("query", "POST", r"/bigquery/v2/projects/([^/]+)/queries", "query"),
)


def handler_of(double: VertexDouble) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            path, _, text = self.path.partition("?")
            query = dict(urllib.parse.parse_qsl(text))
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers: dict[str, str] = {}
            try:
                answer = double.handle(self.command, path, query, body, self.headers)
                status, content = answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode())
                if isinstance(content, dict):
                    headers, content = content, b""
            except Problem as problem:
                status, content = problem.http, json.dumps(problem.body).encode()
            except Exception as error:  # a fault of the double must not look like a fault of the network
                if not isinstance(error, ConnectionAbortedError):
                    traceback.print_exc()
                    self.send_error(501, "the double broke")
                    return
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(status)
            self.send_header("content-type", "application/json; charset=UTF-8")
            self.send_header("content-length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve

        def log_message(self, *_: Any) -> None:
            """Silent."""

    return Handler
