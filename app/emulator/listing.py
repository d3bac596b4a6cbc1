"""How the List operations filter, sort and page. Ten rows a page by default, as AWS: a client has to go on."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence

from app.emulator.protocol import Body, invalid

PAGE = 10


def page(rows: Sequence[Body], body: Body, into: str, name: str, status: str | None, last: bool) -> Body:
    """`name` and `status` say which members of a row NameContains and StatusEquals look at; `into` is
    where the page goes, `last` whether the last made comes first by default.
    """
    kept = [row for row in rows if _wanted(row, body, name, status)]
    sort = {"Name": name, "Status": status or name, "CreationTime": "CreationTime"}.get(
        body.get("SortBy", "CreationTime")
    )
    if sort is not None:
        backwards = body.get("SortOrder", "Descending" if last else "Ascending") == "Descending"
        kept.sort(key=lambda row: row[sort], reverse=backwards)
    start = _place(body.get("NextToken"))
    end = start + body.get("MaxResults", PAGE)
    token = urlsafe_b64encode(str(end).encode()).decode() if end < len(kept) else None
    return {into: kept[start:end], "NextToken": token}


def _wanted(row: Body, body: Body, name: str, status: str | None) -> bool:
    modified = row.get("LastModifiedTime", row["CreationTime"])
    return (
        body.get("NameContains", "").lower() in row[name].lower()
        and (status is None or body.get("StatusEquals", row[status]) == row[status])
        and body.get("CreationTimeAfter", float("-inf")) < row["CreationTime"]
        and row["CreationTime"] < body.get("CreationTimeBefore", float("inf"))
        and body.get("LastModifiedTimeAfter", float("-inf"))
        < modified
        < body.get("LastModifiedTimeBefore", float("inf"))
    )


def _place(token: str | None) -> int:
    if token is None:
        return 0
    try:
        return int(urlsafe_b64decode(token.encode()))
    except ValueError:
        raise invalid("NextToken is none that was handed out.") from None
