"""Serves the page, and the uploads, previews and outputs of jobs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.web.downloads import zipped
from rbvsr_deploy.web.guard import EVENTS, PREVIEW_POLICY, SECURITY_HEADERS, plain_event, refusal
from rbvsr_deploy.web.page import build_page, mount_page
from rbvsr_deploy.web.records import Kind, Settings
from rbvsr_deploy.web.runner import Runner
from rbvsr_deploy.web.store import Job, Store
from rbvsr_deploy.web.uploads import UploadError, receive, safe_name

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["build_app", "listen", "serve"]


class _Announcement(msgspec.Struct):
    """Describes an upload before it begins."""

    name: str
    kind: Kind
    size: int
    files: int


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 is any free one.

    Raises:
        RbvsrError: the address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise RbvsrError(
            f"cannot listen on {host}, port {port} ({error.strerror}): choose another",
            parameters=("host", "port"),
        ) from None


def build_app(store: Store, runner: Runner, *, host: str) -> ASGIApp:
    """Return the page with its server's answers to all other requests.

    Args:
        store: the jobs.
        runner: their queue.
        host: name or address that the server listens on.
    """
    return _Guarded(_application(store, runner), host=host)


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Serve an application on a socket until a signal ends the process."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    # Pages that are open are disconnected at the end: no error, and no traceback for each.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
    server.run(sockets=[listening])


def _application(store: Store, runner: Runner) -> Starlette:
    from starlette.applications import Starlette
    from starlette.routing import Route

    jobs = _Jobs(store, runner)
    app = Starlette(
        routes=[
            Route("/jobs", jobs.announce, methods=["POST"]),
            Route("/jobs/{job}", jobs.delete, methods=["DELETE"]),
            Route("/jobs/{job}/input", jobs.upload, methods=["PUT"]),
            Route("/jobs/{job}/uploaded", jobs.finish_upload, methods=["POST"]),
            Route("/jobs/{job}/preview", jobs.preview),
            Route("/jobs/{job}/output", jobs.output),
        ]
    )
    mount_page(app, build_page(store, runner))
    return app


class _Guarded:
    """Passes on only the requests that :func:`refusal` does not refuse."""

    def __init__(self, app: ASGIApp, *, host: str) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        from starlette.requests import Request

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.encode(), value.encode())
                        for name, value in SECURITY_HEADERS.items()
                        if name.encode() not in given
                    ),
                ]
            await send(message)

        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        refused = refusal(scope["method"], scope["path"], headers, host=self._host)
        if refused is None and scope["path"] == EVENTS:
            event = plain_event(await Request(scope, receive).body())
            receive = _replayed(event or b"", receive)
            refused = None if event is not None else (400, "the event is not one of this page")
        app = self._app if refused is None else _sentence(*refused)
        await app(scope, receive, send_secured)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a channel on which a request's body comes first."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


class _Jobs:
    """Answers requests about the files of jobs."""

    def __init__(self, store: Store, runner: Runner) -> None:
        self._store, self._runner = store, runner

    async def announce(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        try:
            given = msgspec.json.decode(await request.body(), type=_Announcement)
            job = self._store.new(given.name, kind=given.kind, size=given.size, files=given.files)
        except msgspec.DecodeError as error:
            return _sentence(400, f"the announcement of the upload is not valid: {error}")
        except UploadError as error:
            return _sentence(413, str(error))
        return JSONResponse({"job": job.id})

    async def upload(self, request: Request) -> Response:
        job = self._job(request)
        if job is None or job.record.uploaded:
            return _sentence(404, "there is no such upload")
        path = job.input
        if job.record.kind == "folder":
            path /= safe_name(request.query_params.get("name", ""))
        size = int(request.headers["content-length"])
        try:
            job.expect(size)
            received = await receive(self._chunks(job, request), path, at_most=size)
            if received != size:
                raise UploadError("the upload was interrupted: upload it again")
        except BaseException as error:
            # Without all of its files, the upload is of no use.
            self._store.remove(job)
            if isinstance(error, UploadError):
                return _sentence(400, str(error))
            raise
        return _sentence(201, "stored")

    async def finish_upload(self, request: Request) -> Response:
        job = self._job(request)
        if job is None or job.record.uploaded:
            return _sentence(404, "there is no such upload")
        try:
            await asyncio.to_thread(job.finish_upload)
            self._runner.start(job, "preview", Settings())
        except (UploadError, OSError) as error:
            self._store.remove(job)
            return _sentence(400, str(error))
        return _sentence(200, "complete")

    async def delete(self, request: Request) -> Response:
        job = self._job(request)
        if job is not None:
            await asyncio.to_thread(self._runner.remove, job)
        return _sentence(200, "deleted")

    async def preview(self, request: Request) -> Response:
        from starlette.responses import FileResponse

        job = self._job(request)
        if job is None or not job.page.is_file():
            return _sentence(404, "there is no such preview")
        headers = {"content-security-policy": PREVIEW_POLICY, "cache-control": "no-cache"}
        return FileResponse(job.page, media_type="text/html", headers=headers)

    async def output(self, request: Request) -> Response:
        from starlette.responses import FileResponse, StreamingResponse

        job = self._job(request)
        path = job.output() if job is not None else None
        if path is None:
            return _sentence(404, "there is no such output")
        if path.is_file():
            return FileResponse(path, filename=path.name, media_type="application/octet-stream")
        named = FileResponse(path, filename=f"{path.name}.zip").headers["content-disposition"]
        return StreamingResponse(
            zipped(path), media_type="application/zip", headers={"content-disposition": named}
        )

    def _job(self, request: Request) -> Job | None:
        return self._store.get(request.path_params["job"])

    async def _chunks(self, job: Job, request: Request) -> AsyncIterator[bytes]:
        from starlette.requests import ClientDisconnect

        with contextlib.suppress(ClientDisconnect):
            async for chunk in request.stream():
                job.touch()
                yield chunk


def _sentence(status: int, text: str) -> Response:
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(text, status_code=status)
