"""The console of an application: its pages beside the REST API."""

from __future__ import annotations

from fastapi import FastAPI

from service.web import documentation, jobs, overview, settings, signing_in, static_files, submit


def install(app: FastAPI) -> None:
    """Adds the pages to the application that `service.api.app.create_app` has made."""
    for pages in (signing_in, static_files, overview, jobs, submit, settings):
        app.include_router(pages.router)
    app.state.documentation = documentation.documentation_page
