"""The tables of Headroom, as SQLAlchemy Core. Migrations make them; `alembic check` holds the two together.

Times are `timestamptz`, money is integer micro-dollars, results are `real[]` in step order.
Procrastinate keeps its own `procrastinate_*` tables beside these.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP, UUID

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Time = TIMESTAMP(timezone=True)


def _created() -> sa.Column:  # type: ignore[type-arg]
    return sa.Column("created_at", Time, nullable=False, server_default=sa.func.now())


installation = sa.Table(
    "installation",
    metadata,
    sa.Column("sole", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("id", sa.Text, nullable=False, comment="4 characters, made at the first migration, part of AWS names"),
    sa.Column("swept_at", Time, comment="when AWS was last searched for strays: one worker at a time, at a pace"),
    _created(),
    sa.CheckConstraint("sole", name="one_row"),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", UUID, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("prefix", sa.Text, nullable=False, comment="first characters of the key, to tell keys apart"),
    sa.Column("hash", sa.LargeBinary, nullable=False, unique=True, comment="SHA-256 of the 256-bit key"),
    sa.Column("scopes", ARRAY(sa.Text), nullable=False),
    _created(),
    sa.Column("revoked_at", Time),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("hash", sa.LargeBinary, primary_key=True, comment="SHA-256 of the random token in the cookie"),
    sa.Column("key_id", UUID, sa.ForeignKey("api_keys.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("expires_at", Time, nullable=False),
)

datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("id", UUID, primary_key=True),
    sa.Column("parent_id", UUID, sa.ForeignKey("datasets.id", ondelete="SET NULL"), index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("location", sa.Text, nullable=False, comment="key of the Parquet artifact in the store"),
    sa.Column("sha256", sa.Text, nullable=False, comment="of the bytes that were uploaded"),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("servers", sa.Integer, nullable=False),
    sa.Column("metrics", ARRAY(sa.Text), nullable=False),
    sa.Column("units", JSONB, nullable=False),
    sa.Column("attributes", ARRAY(sa.Text), nullable=False),
    sa.Column("known_ahead", ARRAY(sa.Text), nullable=False),
    sa.Column("frequency", sa.Text, nullable=False, comment="D or H"),
    sa.Column("start", Time, nullable=False),
    sa.Column("end", Time, nullable=False),
    sa.Column("quality", JSONB, nullable=False),
    _created(),
)
sa.Index("ix_datasets_newest", datasets.c.created_at.desc(), datasets.c.id.desc())

dataset_servers = sa.Table(
    "dataset_servers",
    metadata,
    sa.Column("dataset_id", UUID, sa.ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("server_id", sa.Text, primary_key=True),
    sa.Column("first_at", Time, nullable=False),
    sa.Column("last_at", Time, nullable=False, comment="the server's own last row: as_of of its forecasts"),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("counts", JSONB, nullable=False, comment="metric → values that are not missing"),
    sa.Column("maxima", JSONB, nullable=False, comment="metric → largest value"),
    sa.Column("attributes", JSONB, nullable=False, comment="attribute → text or number, the server's last one"),
)

forecasts = sa.Table(
    "forecasts",
    metadata,
    sa.Column("id", UUID, primary_key=True),
    sa.Column("dataset_id", UUID, sa.ForeignKey("datasets.id", ondelete="RESTRICT"), nullable=False, index=True),
    sa.Column("metric", sa.Text, nullable=False),
    sa.Column("request", JSONB, nullable=False, comment="the body with its defaults"),
    sa.Column("quantiles", ARRAY(sa.Float), nullable=False, comment="levels asked for and 0.1, 0.5, 0.9, ascending"),
    sa.Column("status", sa.Text, nullable=False, comment="derived from the runs, written with their transitions"),
    sa.Column("warnings", JSONB, nullable=False, server_default="[]"),
    sa.Column("best_model", sa.Text),
    sa.Column("revision", sa.BigInteger, nullable=False, server_default=sa.text("nextval('revisions')")),
    _created(),
    sa.Column("finished_at", Time),
)
sa.Index("ix_forecasts_newest", forecasts.c.created_at.desc(), forecasts.c.id.desc())
sa.Index("ix_forecasts_metric_finished", forecasts.c.status, forecasts.c.metric, forecasts.c.finished_at.desc())

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("owner", sa.Text, primary_key=True, comment="id of the API key, or empty where there are none"),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("body_hash", sa.Text, nullable=False, comment="of the body after defaults"),
    sa.Column(
        "forecast_id", UUID, sa.ForeignKey("forecasts.id", ondelete="SET NULL"), index=True, comment="what it made"
    ),
    _created(),
)

revisions = sa.Sequence("revisions", metadata=metadata)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", UUID, primary_key=True),
    sa.Column("forecast_id", UUID, sa.ForeignKey("forecasts.id", ondelete="CASCADE"), nullable=False),
    sa.Column("position", sa.SmallInteger, nullable=False, comment="order in the request"),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("stage", sa.Text),
    sa.Column("progress", sa.Float, nullable=False, server_default="0"),
    sa.Column("servers", sa.Integer, nullable=False, server_default="0", comment="eligible ones"),
    sa.Column("fallback_servers", sa.Integer, nullable=False, server_default="0"),
    sa.Column("estimated_microusd", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("actual_microusd", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("error", JSONB, comment="{code, detail} of a failed or skipped run"),
    sa.Column("scores", JSONB, comment="pooled over the reported windows"),
    sa.Column("seconds", sa.Float, comment="of work, all children"),
    sa.Column("report", JSONB, comment="what preparation changed, what crossed, which weights"),
    sa.Column("epoch", sa.Integer, nullable=False, server_default="0", comment="fence: one per claim"),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0", comment="workers that died on it"),
    sa.Column("lease_until", Time, comment="the claim ends unless it is renewed; database clock"),
    sa.Column("due_at", Time, nullable=False, server_default=sa.func.now()),
    sa.Column("parked", sa.Boolean, nullable=False, server_default=sa.false(), comment="running, waits for due_at"),
    sa.Column("revision", sa.BigInteger, nullable=False, server_default=sa.text("nextval('revisions')")),
    _created(),
    sa.Column("started_at", Time),
    sa.Column("finished_at", Time),
    sa.UniqueConstraint("forecast_id", "model"),
)
sa.Index("ix_runs_open", runs.c.due_at, postgresql_where=runs.c.status.in_(["queued", "running"]))

run_events = sa.Table(
    "run_events",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("run_id", UUID, sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("before", sa.Text, comment="null: the run was made"),
    sa.Column("after", sa.Text, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("detail", sa.Text),
    _created(),
)

results = sa.Table(
    "results",
    metadata,
    sa.Column("run_id", UUID, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("server_id", sa.Text, primary_key=True),
    sa.Column("as_of", Time, nullable=False, comment="the server's last row; step k is as_of + k × step"),
    sa.Column("step", sa.Interval, nullable=False),
    sa.Column("p10", ARRAY(sa.REAL), nullable=False),
    sa.Column("p50", ARRAY(sa.REAL), nullable=False),
    sa.Column("p90", ARRAY(sa.REAL), nullable=False),
    sa.Column("others", ARRAY(sa.REAL), comment="the further levels, one after the other, ascending"),
    sa.Column("fallback", sa.Text, comment="the model that stood in, when the run's own could not"),
    sa.Column("smape", sa.REAL),
    sa.Column("mase", sa.REAL),
    sa.Column("mae", sa.REAL),
    sa.Column("rmse", sa.REAL),
    sa.Column("wql", sa.REAL),
    sa.Column("coverage", sa.REAL),
    sa.Column("tally", ARRAY(sa.REAL), comment="per stretch of the horizon the five sums that scores are made of"),
    sa.Column("weights", ARRAY(sa.REAL), comment="of an ensemble's members, in the order of the run's report"),
    sa.Column("shifted_at", Time, comment="when the level shifted lately"),
)

canvas_runs = sa.Table(
    "canvas_runs",
    metadata,
    sa.Column("run_id", UUID, primary_key=True, comment="no foreign key: it outlives a deleted forecast"),
    sa.Column("forecast_id", UUID, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("facts", JSONB, nullable=False, comment="what the stages before found, and what a request is built from"),
    sa.Column("gone_at", Time, comment="nothing of it is left on AWS"),
    _created(),
)
sa.Index("ix_canvas_runs_left", canvas_runs.c.created_at, postgresql_where=canvas_runs.c.stage != "forgotten")

canvas_intents = sa.Table(
    "canvas_intents",
    metadata,
    sa.Column("run_id", UUID, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("purpose", sa.Text, primary_key=True, comment="automl, model, transform-forecast, transform-window-1"),
    sa.Column("name", sa.Text, nullable=False, comment="on AWS; derived, so a repeat finds its own work"),
    sa.Column("spec_hash", sa.Text, nullable=False, comment="of the request body"),
    sa.Column("not_after", Time, nullable=False, comment="the call is not made later than this"),
    sa.Column("created_on_aws", sa.Boolean, nullable=False, server_default=sa.false()),
    _created(),
)

run_paths = sa.Table(
    "run_paths",
    metadata,
    sa.Column("run_id", UUID, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("paths", sa.Integer, nullable=False),
    sa.Column("ranks", sa.LargeBinary, nullable=False, comment="uint16 little-endian (paths, horizon): rank per step"),
    sa.Column("source", sa.Text, nullable=False, comment="residuals, or autoregressive where there were too few"),
    sa.Column("between", sa.REAL, comment="correlation of two servers on one date, where known"),
)

run_risks = sa.Table(
    "run_risks",
    metadata,
    sa.Column("run_id", UUID, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("rules", JSONB, nullable=False, comment="what the run's risk was judged by; domain/risk.py"),
    sa.Column("threshold", sa.Float, comment="of all its servers; null: they differ"),
    sa.Column("as_of", Time, nullable=False, comment="the newest of its servers"),
)
"""Runs whose servers have their rows in `risks`."""

risks = sa.Table(
    "risks",
    metadata,
    # No foreign key: checking it row by row would cost as much as the rows. A trigger lets them go with run_risks.
    sa.Column("run_id", UUID, nullable=False),
    sa.Column("server_id", sa.Text, nullable=False),
    sa.Column("threshold", sa.Float, nullable=False, comment="the server's own, else its unit's"),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("max_p90", sa.Float, nullable=False),
    sa.Column("mean_p50", sa.Float, nullable=False),
    sa.Column("breach_probability", sa.Float, nullable=False),
    sa.Column("expected_breach_days", sa.Float, nullable=False),
    sa.Column("runway_conservative", sa.Float, comment="days; null: not in the horizon. Not null: at risk"),
    sa.Column("runway_expected", sa.Float, comment="days"),
    sa.Column("first_breach_p10", Time),
    sa.Column("first_breach_p50", Time),
    sa.Column("headroom_pct", sa.Float, nullable=False),
    sa.Column("severity", sa.Float),
    # Attributes that lists are filtered by, beside what they are sorted by: a page needs no join to find its servers.
    sa.Column("business_unit", sa.Text),
    sa.Column("region", sa.Text),
    sa.Column("criticality", sa.Text),
    sa.Column("by_runway", sa.Integer, nullable=False, comment="place in the run's list so sorted, ties settled"),
    sa.Column("by_breach_probability", sa.Integer, nullable=False),
    sa.Column("by_max_p90", sa.Integer, nullable=False),
)
for _sort in ("by_runway", "by_breach_probability", "by_max_p90"):
    sa.Index(f"ix_risks_{_sort}", risks.c.run_id, risks.c[_sort])
"""And unique on (run_id, server_id COLLATE "C"), for the list by name: Alembic cannot compare such an index, so that
only its migration speaks of it."""

alert_rules = sa.Table(
    "alert_rules",
    metadata,
    sa.Column("id", UUID, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("metric", sa.Text, comment="null: of any"),
    sa.Column("where", JSONB, nullable=False, comment="attribute → the values of it that pass"),
    sa.Column("threshold", sa.Float, comment="null: each server's own"),
    sa.Column("model", sa.Text, comment="null: the best of each forecast"),
    sa.Column("condition", JSONB, nullable=False, comment="as it was asked for; domain/alerts.py"),
    sa.Column("only_changes", sa.Boolean, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("secret", sa.Text, nullable=False, comment="signs, so it cannot be a hash; never shown again"),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("problem", sa.Text, comment="why it was switched off, or could not be judged last"),
    _created(),
)
sa.Index("ix_alert_rules_newest", alert_rules.c.created_at.desc(), alert_rules.c.id.desc())

alert_evaluations = sa.Table(
    "alert_evaluations",
    metadata,
    # Written with the success itself, deleted with the deliveries that follow from it: what is here is to be done.
    sa.Column("forecast_id", UUID, sa.ForeignKey("forecasts.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("family", UUID, nullable=False, comment="the first version of the dataset: judged one after the other"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0", comment="fence: one per claim"),
    sa.Column("due_at", Time, nullable=False, server_default=sa.func.now()),
    sa.Column("position", sa.BigInteger, sa.Identity(always=True), nullable=False, unique=True),
    _created(),
)

alert_states = sa.Table(
    "alert_states",
    metadata,
    sa.Column("rule_id", UUID, sa.ForeignKey("alert_rules.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("family", UUID, primary_key=True),
    sa.Column("metric", sa.Text, primary_key=True),
    sa.Column("servers", JSONB, nullable=False, comment="server that meets the rule → since when"),
    sa.Column("forecast_id", UUID, nullable=False, comment="the one that was judged last"),
)

alert_deliveries = sa.Table(
    "alert_deliveries",
    metadata,
    sa.Column("id", UUID, primary_key=True, comment="the webhook-id: the same for each attempt"),
    sa.Column("rule_id", UUID, sa.ForeignKey("alert_rules.id", ondelete="CASCADE"), nullable=False),
    sa.Column("forecast_id", UUID, comment="null: a test; no foreign key, for it outlives the forecast"),
    sa.Column("body", sa.Text, nullable=False, comment="what is signed and sent, to the byte"),
    sa.Column("status", sa.Text, nullable=False, comment="pending, delivered or failed"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("last_status", sa.Integer, comment="HTTP status of the last attempt"),
    sa.Column("last_error", sa.Text, comment="why the last attempt did not deliver"),
    sa.Column("due_at", Time, nullable=False, server_default=sa.func.now()),
    _created(),
    sa.Column("finished_at", Time),
    sa.UniqueConstraint("rule_id", "forecast_id"),
    sa.CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="status"),
)
sa.Index("ix_alert_deliveries_newest", alert_deliveries.c.created_at.desc(), alert_deliveries.c.id.desc())
sa.Index("ix_alert_deliveries_due", alert_deliveries.c.due_at, postgresql_where=alert_deliveries.c.status == "pending")

ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    # No foreign keys: what was spent stays when the forecast is deleted.
    sa.Column("run_id", UUID, nullable=False),
    sa.Column("forecast_id", UUID, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False, comment="id of the API key, or empty where there are none"),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False, comment="reserved, settled, released or overrun"),
    sa.Column("purpose", sa.Text, nullable=False, comment="what was paid for; `run` is the whole attempt"),
    sa.Column("amount_microusd", sa.BigInteger, nullable=False),
    sa.Column("basis", sa.Text, nullable=False, comment="how the amount came about, for people"),
    sa.Column("detail", JSONB, nullable=False, server_default="{}", comment="jobs, seconds and prices behind it"),
    sa.Column("created_at", Time, nullable=False, server_default=sa.func.now(), index=True),
    sa.UniqueConstraint("run_id", "attempt", "kind", "purpose"),
    sa.CheckConstraint("amount_microusd >= 0", name="amount"),
    sa.CheckConstraint("kind IN ('reserved', 'settled', 'released', 'overrun')", name="kind"),
)
"""Append-only: a trigger refuses UPDATE, DELETE and TRUNCATE."""
