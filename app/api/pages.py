"""How every list is paged: `limit`, an opaque cursor, and `{"items": […], "next_cursor": …}`.

    after = paging.after(tuple[datetime, UUID])                     # None on the first page
    rows = await services.datasets.list(after, paging.limit + 1)    # one more tells whether there is a next page
    return paging.page([shown(row) for row in rows], [(row.created_at, row.id) for row in rows])

A cursor is the sort key of the last row (keyset paging: no offset, no state kept), bound to the list and the filters
it came from. It is opaque, not secret: whoever forges one sees no more than with the filters alone.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NoReturn, TypeVar

from fastapi import Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import to_json

from app.api.strict import is_text
from app.errors import BadCursor

T = TypeVar("T")
P = TypeVar("P")

MAX_LIMIT = 1000


class Page(BaseModel, Generic[T]):
    """One page of a list."""

    # A parametrised generic does not inherit the docstring.
    model_config = ConfigDict(json_schema_extra=lambda schema: schema.setdefault("description", "One page of a list."))

    items: list[T] = Field(description="This page, in the order of the list.")
    next_cursor: str | None = Field(
        description="Pass it as `cursor`, with the same filters, for the next page; null on the last one."
    )


@dataclass(frozen=True)
class Paging:
    """`limit` and `cursor` of one request, and what the cursor is bound to."""

    limit: int
    cursor: str | None
    binding: str

    def bound_to(self, body: object) -> "Paging":
        """The same, of a list that a body asks for as well as the query."""
        bound = self.binding.encode() + to_json(body)
        return Paging(self.limit, self.cursor, hashlib.sha256(bound).hexdigest()[:16])

    def after(self, position: type[P]) -> P | None:
        """Sort key of the last row of the page before, as `position` (a tuple type); None on the first page.

        Raises BadCursor for a cursor of another list, of other filters, or that we never made.
        """
        if self.cursor is None:
            return None
        binding, key = _decode(self.cursor)
        if binding != self.binding:
            raise BadCursor(
                "This cursor came from another list or from other filters. "
                "Repeat the filters of the request that it came from, or leave `cursor` out to start anew."
            )
        try:
            return TypeAdapter(position).validate_json(to_json(key))
        except ValidationError:
            _garbage()

    def page(self, items: Sequence[T], positions: Sequence[Sequence[object]]) -> Page[T]:
        """The page out of up to `limit` + 1 rows and the sort key of each."""
        more = len(items) > self.limit
        cursor = _encode(self.binding, positions[self.limit - 1]) if more else None
        return Page(items=list(items[: self.limit]), next_cursor=cursor)

    def next_cursor(self, position: Sequence[object] | None) -> str | None:
        """The cursor after the row of that sort key, for lists that make their own page."""
        return None if position is None else _encode(self.binding, position)


async def _paging(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Most items on one page.", examples=[100])] = 100,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before, with the same filters.")] = None,
) -> Paging:
    filters = sorted(pair for pair in request.query_params.multi_items() if pair[0] not in ("limit", "cursor"))
    bound = to_json([request.url.path, filters])
    return Paging(limit, cursor, hashlib.sha256(bound).hexdigest()[:16])


PagingParameters = Annotated[Paging, Depends(_paging)]
"""Annotate a handler's parameter with it."""


def _encode(binding: str, position: Sequence[object]) -> str:
    return base64.urlsafe_b64encode(to_json([binding, list(position)])).decode().rstrip("=")


def _decode(cursor: str) -> tuple[str, list[Any]]:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        binding, position = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        texts = [binding, *(part for part in position if isinstance(part, str))]
        if isinstance(binding, str) and isinstance(position, list) and all(map(is_text, texts)):
            return binding, position
    except (ValueError, TypeError, RecursionError):
        pass
    _garbage()


def _garbage() -> NoReturn:
    raise BadCursor("`cursor` is not one that this service made. Leave it out to start from the first page.")
