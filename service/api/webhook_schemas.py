"""The documents of webhooks and their deliveries."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.api.schemas import Document
from service.jobs.job import State
from service.public_addresses import LONGEST_URL
from service.queue.stored_webhooks import Webhook

_Text = Annotated[str, StringConstraints(max_length=255, pattern=r"^[^\x00]*$")]


class WebhookRequest(BaseModel):
    """An address to tell of changes."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(
        max_length=LONGEST_URL,
        description="A public address, or one that SYNCBN_WEBHOOK_ALLOWED names",
        examples=["https://example.org/syncbn"],
    )
    events: list[State] = Field(
        default_factory=list,
        max_length=len(State),
        description="Only when a job comes into one of these states; none: any",
    )
    labels: dict[_Text, _Text] = Field(
        default_factory=dict, max_length=20, description="Only jobs with all of these labels"
    )


class WebhookDocument(Document):
    """A webhook, without its secret."""

    id: str = Field(examples=["w1k0w1qk530wdg8e15q54"])
    url: str
    events: list[State] = Field(description="None: any state")
    labels: dict[str, str]
    created_at: datetime

    @classmethod
    def of(cls, webhook: Webhook, **more: str) -> Self:
        """Returns the document of a webhook."""
        shown = {"id": webhook.id, "url": webhook.url, "events": webhook.states}
        return cls.model_validate(
            {**shown, "labels": webhook.labels, "created_at": webhook.created_at, **more}
        )


class NewWebhookDocument(WebhookDocument):
    """A webhook that was just added."""

    secret: str = Field(
        description="Signs its messages; shown only now", examples=["whsec_C2FVsBQIhrscChlQIM"]
    )


class WebhookPage(Document):
    """All webhooks, oldest first."""

    items: list[WebhookDocument]


class DeliveryDocument(Document):
    """A message to a webhook."""

    id: int
    message_id: str = Field(description="The header webhook-id: the same at each attempt")
    body: str = Field(description="What is sent, JSON")
    state: Literal["pending", "delivered", "given_up"]
    attempts: int
    next_at: datetime = Field(description="When the next attempt is due, if it is pending")
    status: int | None = Field(description="HTTP status of the last answer; null: none")
    problem: str = Field(description="Why the last attempt failed")
    created_at: datetime
    finished_at: datetime | None


class DeliveryPage(Document):
    """One page of deliveries, newest first."""

    items: list[DeliveryDocument]
    next_cursor: str | None
