-- What each role of docs/operations.md may do. Run it as the owner of the tables (headroom_owner), after each
-- `headroom migrate`; running it again is harmless.

-- The API and the workers.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO headroom_service;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO headroom_service;

-- What was spent is added to, never changed; the schema's version is the owner's alone.
REVOKE UPDATE, DELETE, TRUNCATE ON ledger FROM headroom_service;
REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON alembic_version FROM headroom_service;

-- People and BI tools: results and costs, but neither keys nor sessions nor what signs alerts.
GRANT SELECT ON
    datasets, dataset_servers, forecasts, runs, run_events, results, run_paths, run_risks, risks, forecast_quantiles,
    ledger
TO headroom_reader;
