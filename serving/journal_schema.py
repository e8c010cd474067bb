"""The journal's tables. Only `serving.journal` reads or writes them."""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()

ENDPOINTS = sa.Table(
    "endpoints",
    METADATA,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("default_slot", sa.String(5), nullable=False),
    sa.Column("blue_version", sa.String(64), nullable=False),
    sa.Column("green_version", sa.String(64), nullable=False),
    sa.Column("salt", sa.String(80), nullable=False),
    sa.Column("share_bp", sa.Integer, nullable=False),
    sa.Column("until", sa.Float, nullable=False),
    sa.Column("intent", sa.JSON, nullable=True),
    sa.Column("release_id", sa.String(80), nullable=False),
    sa.Column("keep_until", sa.Float, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
)

RELEASES = sa.Table(
    "releases",
    METADATA,
    sa.Column("id", sa.String(80), primary_key=True),
    sa.Column("endpoint", sa.String(40), nullable=False, index=True),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("champion", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("request", sa.String(16), nullable=False),
    sa.Column("owner", sa.String(80), nullable=False),
    sa.Column("owner_until", sa.Float, nullable=False),
    sa.Column("flow_run_id", sa.String(80), nullable=False),
    sa.Column("mlflow_run_id", sa.String(80), nullable=False),
    sa.Column("mlflow_url", sa.Text, nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float, nullable=True),
    sa.Column("decided_at", sa.Float, nullable=True),
    sa.Column("decided_stage", sa.String(16), nullable=False),
    sa.Column("policy", sa.JSON, nullable=False),
    sa.Column("verdicts", sa.JSON, nullable=False),
    sa.Column("progress", sa.JSON, nullable=False),
)

LOOKS = sa.Table(
    "looks",
    METADATA,
    sa.Column("release_id", sa.String(80), primary_key=True),
    sa.Column("stage", sa.String(16), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("cursor_from", sa.Text, nullable=False),
    sa.Column("cursor_to", sa.Text, nullable=False),
    sa.Column("stats", sa.JSON, nullable=False),
)

AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("endpoint", sa.String(40), nullable=False, index=True),
    sa.Column("release_id", sa.String(80), nullable=False),
    sa.Column("who", sa.String(200), nullable=False),
    sa.Column("what", sa.String(80), nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
)

STATES = sa.Table(
    "states",
    METADATA,
    sa.Column("endpoint", sa.String(40), primary_key=True),
    sa.Column("kind", sa.String(40), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("value", sa.JSON, nullable=False),
)
